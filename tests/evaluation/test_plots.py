"""Plots: what is drawn, and that published points cannot be taken for measured ones."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from glc.evaluation.plots import rd_figure, save_plots, svg
from glc.evaluation.results import read_results
from glc.evaluation.tables import PublishedCurve
from tests.evaluation.fake_run import CURVE, at_rates, write_run

SVG = "{http://www.w3.org/2000/svg}"
PAPER = PublishedCurve("Paper", "x", "plot", [{"bpp": 0.04, "lpips": 0.2}, {"bpp": 0.06, "lpips": 0.1}])


def lines(figure: Figure) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in figure.axes[0].get_lines()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_curves_are_the_runs(folder: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", "jpeg", at_rates(2, CURVE[:1]))
    drawn = lines(rd_figure([read_results(folder), read_results(other)], "lpips"))
    assert set(drawn) == {"glc", "jpeg"}
    assert drawn["glc"].get_xydata().tolist() == [[p["bpp"], p["lpips"]] for p in CURVE]
    assert drawn["jpeg"].get_xydata().tolist() == [[0.04, 0.3]]
    assert drawn["glc"].get_color() != drawn["jpeg"].get_color()
    assert drawn["glc"].get_marker() != drawn["jpeg"].get_marker()


def test_published_points_look_published(folder: Path) -> None:
    figure = rd_figure([read_results(folder)], "lpips", [PAPER])
    drawn = lines(figure)
    assert set(drawn) == {"glc", "Paper (published)"}
    published, measured = drawn["Paper (published)"], drawn["glc"]
    assert published.get_linestyle() == "--"
    assert published.get_markerfacecolor() == "none"
    assert measured.get_linestyle() == "-"
    assert measured.get_markerfacecolor() == measured.get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["glc", "Paper (published)"]


def test_runs_without_the_metric_and_infinite_values_are_omitted(folder: Path, tmp_path: Path) -> None:
    assert set(lines(rd_figure([read_results(folder)], "psnr", [PAPER]))) == {"glc"}
    assert not lines(rd_figure([read_results(folder)], "dists"))
    lossless = write_run(tmp_path / "lossless", curve=[*CURVE, {"bpp": 9.0, "psnr": math.inf}])
    drawn = lines(rd_figure([read_results(lossless)], "psnr"))
    assert len(drawn["glc"].get_xydata()) == len(CURVE)


def test_wide_ranges_of_rates_are_logarithmic(folder: Path, tmp_path: Path) -> None:
    run = read_results(folder)
    far = read_results(write_run(tmp_path / "far", "jpeg", at_rates(10)))
    assert rd_figure([run], "psnr").axes[0].get_xscale() == "linear"
    assert rd_figure([run, far], "psnr").axes[0].get_xscale() == "log"


def test_files(folder: Path, tmp_path: Path) -> None:
    written = save_plots([read_results(folder)], tmp_path / "plots", [PAPER])
    assert sorted(path.name for path in written) == sorted(
        f"rd_{name}.{suffix}" for name in ("psnr", "ms_ssim", "lpips") for suffix in ("png", "svg")
    )
    assert set((tmp_path / "plots").iterdir()) == set(written)
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width > 800
                assert len(image.convert("RGB").getcolors(maxcolors=image.width * image.height) or []) > 10
        else:
            assert ElementTree.parse(path).getroot().tag == f"{SVG}svg"


def test_svg_is_reproducible_and_its_text_is_text(folder: Path) -> None:
    run = read_results(folder)
    first = svg(rd_figure([run], "lpips", [PAPER]), "lpips")
    assert svg(rd_figure([run], "lpips", [PAPER]), "lpips") == first
    texts = {element.text for element in ElementTree.fromstring(first).iter(f"{SVG}text")}
    assert {"glc", "Paper (published)", "rate (bits per pixel)", "LPIPS ↓"} <= texts


def test_inline_svgs_of_a_page_share_no_names(folder: Path) -> None:
    run = read_results(folder)
    text, other = (svg(rd_figure([run], "lpips"), name, inline=True) for name in ("lpips", "other"))
    assert text.startswith("<svg")
    ids = [element.get("id") for element in ElementTree.fromstring(text).iter(f"{SVG}clipPath")]
    assert ids
    assert not [name for name in ids if f'id="{name}"' in other]
