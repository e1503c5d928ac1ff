"""Tables, BD-rates and published results."""

import math
import re
from pathlib import Path

import pytest

from glc.evaluation.results import read_results
from glc.evaluation.tables import (
    NOTHING,
    READ,
    PublishedCurve,
    ResultTable,
    bd_rate,
    bd_rate_table,
    points_table,
    published_curves,
    published_latencies,
)
from tests.evaluation.fake_run import CURVE, at_rates, write_run

HALVED = [{"bpp": 0.5 * point["bpp"], "lpips": point["lpips"]} for point in CURVE]
PAPER = PublishedCurve("Paper", "somebody, table 1", "file", HALVED)
NASTY = ResultTable(
    ["a_b", "50 % & more"],
    [["x|y", r"\today $1 {~^#}"], ["<b>", "line\nbreak"]],
    notes=["Less than < here_"],
)


def test_markdown_cells_stay_cells() -> None:
    lines = NASTY.to_markdown().splitlines()
    assert lines[:2] == ["| a_b | 50 % & more |", "| --- | ---: |"]
    assert lines[2] == r"| x\|y | \today $1 {~^#} |"
    assert lines[3] == "| <b> | line break |"
    assert lines[4:] == ["", "Less than < here_"]


def test_latex_has_no_live_characters() -> None:
    text = NASTY.to_latex()
    assert r"\begin{tabular}{lr}" in text
    assert r"a\_b & 50 \% \& more \\" in text
    row = r"x\textbar{}y & \textbackslash{}today \$1 \{\textasciitilde{}\textasciicircum{}\#\} \\"
    assert row in text
    assert text.count(r"\\") == 3
    assert r"\par\smallskip Less than \textless{} here\_" in text


def test_html_is_escaped() -> None:
    text = NASTY.to_html()
    assert "<td>&lt;b&gt;</td>" in text
    assert "<b>" not in text
    assert '<th class="number">50 % &amp; more</th>' in text


def test_points_and_published_points(tmp_path: Path) -> None:
    run = read_results(write_run(tmp_path / "a"))
    other = PublishedCurve("Other", "x", "eye", [{"bpp": 0.01, "fid": 3.0}])
    table = points_table([run], [PAPER, other])
    assert table.header[3:5] == ["bpp ↓", "PSNR (dB) ↑"]
    assert table.rows[1] == ["glc", "q1", "3", "0.0300", "23.00", "0.7500", "0.2500", "0.500", "0.250"]
    published = [row for row in table.rows if row[0] == "Paper (published)"]
    assert len(published) == 4
    assert published[0][3:7] == ["0.0100", NOTHING, NOTHING, "0.3000"]
    # The other one has none of the metrics.
    assert {row[0] for row in table.rows} == {"glc", "Paper (published)"}
    (note,) = table.notes
    assert "Paper" in note
    assert "somebody, table 1" in note


def test_means_over_fewer_images_are_named(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "a",
        data="kodak",
        unavailable={"fid": "no weights for x.pth. Tried: a, b. Fix: c."},
        incomplete={"ms_ssim, q0": "over 2 of 3 images"},
    )
    path = folder / "summary.json"
    path.write_text(path.read_text().replace('"label": "q2", "images": 3', '"label": "q2", "images": 2'))
    runs = [read_results(folder), read_results(write_run(tmp_path / "b", "other"))]
    notes = " ".join(points_table(runs).notes)
    assert "glc, q2: over 2 of 3 images only." in notes
    assert "fid was not measured (glc): no weights for x.pth." in notes
    assert "Tried" not in notes
    assert "glc, ms_ssim, q0: over 2 of 3 images." in notes
    assert "fid was not measured (by any run)" in " ".join(points_table(runs[:1]).notes)


def test_bd_rates_against_the_anchor(tmp_path: Path) -> None:
    slim, wide = write_run(tmp_path / "a", "slim", at_rates(0.75)), write_run(tmp_path / "b", "wide")
    runs = [read_results(slim), read_results(wide)]
    table = bd_rate_table(runs, anchor=1, published=[PAPER])
    assert table.header == ["codec", "PSNR", "MS-SSIM", "LPIPS"]
    assert table.rows == [
        ["slim", "−25.0", "−25.0", "−25.0"],
        ["Paper (published)", NOTHING, NOTHING, "−50.0"],
    ]
    assert "against wide" in table.notes[0]
    assert bd_rate_table(runs, anchor=0).rows == [["wide", "+33.3", "+33.3", "+33.3"]]


def test_reasons_for_missing_bd_rates(tmp_path: Path) -> None:
    runs = [
        read_results(write_run(tmp_path / "a")),
        read_results(write_run(tmp_path / "b", "short", CURVE[:2])),
        read_results(write_run(tmp_path / "c", "sharp", [{**p, "psnr": p["psnr"] + 20} for p in CURVE])),
    ]
    table = bd_rate_table(runs)
    assert table.rows[0] == ["short", NOTHING, NOTHING, NOTHING]
    assert table.rows[1][1] == NOTHING
    text = "\n".join(table.notes)
    assert "The codec has fewer than 3 points: short (PSNR, MS-SSIM, LPIPS)." in text
    assert re.search(r"The quality ranges do not overlap: sharp \(PSNR\)\.", text)


RATES = (0.02, 0.03, 0.05, 0.08)
PSNR = (22.0, 23.0, 24.0, 25.0)
LPIPS = (0.30, 0.25, 0.20, 0.16)


def curve(values: tuple[float, ...], factor: float = 1.0) -> list[tuple[float, float]]:
    return [(factor * rate, value) for rate, value in zip(RATES, values, strict=True)]


@pytest.mark.parametrize(("name", "values"), [("psnr", PSNR), ("lpips", LPIPS)])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.2])
def test_the_same_quality_at_other_rates(name: str, values: tuple[float, ...], factor: float) -> None:
    found = bd_rate(curve(values), curve(values, factor), name)
    assert found.percent == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert not found.note


@pytest.mark.parametrize(("name", "sign"), [("psnr", 1), ("lpips", -1)])
def test_a_bd_rate_computed_by_hand(name: str, sign: int) -> None:
    """Straight lines of log rate over quality, so that the mean distance over the shared part is exact."""
    base = 1.0 if sign == 1 else 100.0
    anchor = [(10 ** (-2 + 0.1 * q), base + sign * q) for q in (0, 1, 2, 3)]
    # Log rate 0.1 below at quality 1 and equal at quality 3: 0.05 on average over what they share, [1, 3].
    test = [(10 ** (-2 + 0.1 * q - 0.05 * (3 - q)), base + sign * q) for q in (1, 2, 3, 4)]
    assert bd_rate(anchor, test, name).percent == pytest.approx(100 * (10**-0.05 - 1), rel=1e-6)


def test_the_order_of_points_does_not_matter() -> None:
    test = [(rate, value + 0.3 * rate) for rate, value in curve(LPIPS, 0.7)]
    assert bd_rate(curve(LPIPS)[::-1], test[::-1], "lpips") == bd_rate(curve(LPIPS), test, "lpips")


@pytest.mark.parametrize(
    ("anchor", "test", "name", "words"),
    [
        (curve(PSNR)[:2], curve(PSNR), "psnr", "the anchor has fewer than 3 points"),
        (curve(PSNR), curve(PSNR)[:1], "psnr", "the codec has fewer than 3 points"),
        (curve(PSNR), [(r, v + 10) for r, v in curve(PSNR)], "psnr", "do not overlap"),
        (curve(PSNR), [*curve(PSNR)[:3], (0.08, 23.9)], "psnr", "does not increase from 0.0500 to 0.0800"),
        (curve(PSNR), curve(PSNR), "zeal", "unknown whether higher"),
        (curve(PSNR), [*curve(PSNR)[:2], (0.05, math.inf)], "psnr", "fewer than 3 points"),
    ],
)
def test_undefined_bd_rates_have_a_reason(
    anchor: list[tuple[float, float]], test: list[tuple[float, float]], name: str, words: str
) -> None:
    found = bd_rate(anchor, test, name)
    assert found.percent is None
    assert words in found.note


def test_rates_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        bd_rate([(0.0, 1.0), *curve(PSNR)], curve(PSNR), "psnr")


def test_caveats() -> None:
    few = bd_rate(curve(PSNR), curve(PSNR, 0.9)[:3], "psnr")
    assert few.percent == pytest.approx(-10, abs=0.5)
    assert few.note == "from 3 points"
    apart = bd_rate(curve(PSNR), [(rate, value + 2) for rate, value in curve(PSNR)], "psnr")
    assert apart.percent is not None
    assert apart.note == "over 20 % of the quality range"


SETS = ("kodak", "clic2020", "div2k")
RANGES = {
    "bpp": (0.001, 0.2),
    "psnr": (10, 32),
    "ms_ssim": (0.5, 1),
    "lpips": (0.05, 0.7),
    "dists": (0.03, 0.4),
    "fid": (1, 30),
    "kid": (1e-5, 1e-2),
}


@pytest.mark.parametrize("data", SETS)
def test_published_results_are_plausible_and_have_sources(data: str) -> None:
    curves = published_curves(data)
    assert curves[0].codec == "GLC"
    for entry in curves:
        assert entry.source
        assert entry.read in READ
        rates = [point["bpp"] for point in entry.points]
        assert rates == sorted(rates)
        for point in entry.points:
            assert all(RANGES[key][0] < value < RANGES[key][1] for key, value in point.items())


def test_metrics_under_the_names_of_runs() -> None:
    entry = published_curves("clic2020")[0]
    assert entry.curve("fid_256") == entry.curve("fid") != []
    # Of other patches nothing was published.
    assert entry.curve("fid_64") == []
    kodak = published_curves("kodak")
    assert kodak[0].curve("psnr")[0] == (0.0247, 21.32)
    # The point that measured VVC is held against.
    (vvc,) = (entry for entry in kodak if "VVC" in entry.codec)
    assert dict(vvc.curve("psnr"))[0.048] == pytest.approx(26.1, abs=0.05)
    assert not published_curves("folder")


def test_published_latencies() -> None:
    for entry in published_latencies():
        assert entry["source"]
        assert 0 < entry["encode"] < 2000
        assert 0 < entry["decode"] < 2000
