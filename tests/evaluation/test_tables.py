"""Tables: the figures stand where they belong, whatever text is in the cells."""

import re
from pathlib import Path

from glc.evaluation.published import PublishedCurve

from glc.evaluation.results import read_results
from glc.evaluation.tables import NOTHING, Table, bd_rate_table, points_table
from tests.evaluation.fake_run import CURVE, at_rates, write_run

PAPER = PublishedCurve(
    "Paper",
    "somebody, table 1",
    "file",
    [{"bpp": 0.5 * point["bpp"], "lpips": point["lpips"]} for point in CURVE],
)
NASTY = Table(
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
    table = points_table([run], [PAPER])
    assert table.header[3:5] == ["bpp ↓", "PSNR (dB) ↑"]
    assert table.rows[1] == ["glc", "q1", "3", "0.0300", "23.00", "0.7500", "0.2500", "0.500", "0.250"]
    published = [row for row in table.rows if row[0] == "Paper (published)"]
    assert len(published) == 4
    assert published[0][3:7] == ["0.0100", NOTHING, NOTHING, "0.3000"]
    (note,) = (note for note in table.notes if "Paper" in note)
    assert "somebody, table 1" in note


def test_what_is_published_of_other_metrics_has_no_rows(tmp_path: Path) -> None:
    run = read_results(write_run(tmp_path / "a"))
    other = PublishedCurve("Other", "x", "eye", [{"bpp": 0.01, "fid": 3.0}])
    table = points_table([run], [other])
    assert all("Other" not in text for row in table.rows for text in row)
    assert not table.notes


def test_means_over_fewer_pictures_are_named(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "a",
        data="kodak",
        unavailable={"fid": "no weights for x.pth. Tried: a, b. Fix: c."},
        incomplete={"ms_ssim, q0": "over 2 of 3 pictures"},
    )
    path = folder / "summary.json"
    path.write_text(path.read_text().replace('"label": "q2", "pictures": 3', '"label": "q2", "pictures": 2'))
    runs = [read_results(folder), read_results(write_run(tmp_path / "b", "other"))]
    notes = " ".join(points_table(runs).notes)
    assert "glc, q2: over 2 of 3 pictures only." in notes
    assert "fid was not measured (glc): no weights for x.pth." in notes
    assert "Tried" not in notes
    assert "glc, ms_ssim, q0: over 2 of 3 pictures." in notes
    assert "fid was not measured (by any run)" in " ".join(points_table(runs[:1]).notes)


def test_delta_rates_against_the_anchor(tmp_path: Path) -> None:
    runs = [
        read_results(write_run(tmp_path / "a", "slim", at_rates(0.75))),
        read_results(write_run(tmp_path / "b", "wide")),
    ]
    table = bd_rate_table(runs, anchor=1, published=[PAPER])
    assert table.header == ["codec", "PSNR", "MS-SSIM", "LPIPS"]
    assert table.rows == [
        ["slim", "−25.0", "−25.0", "−25.0"],
        ["Paper (published)", NOTHING, NOTHING, "−50.0"],
    ]
    assert "against wide" in table.notes[0]
    assert bd_rate_table(runs, anchor=0).rows == [["wide", "+33.3", "+33.3", "+33.3"]]


def test_why_there_is_no_delta_rate(tmp_path: Path) -> None:
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
    assert re.search(r"The curves share no quality: sharp \(PSNR\)\.", text)
