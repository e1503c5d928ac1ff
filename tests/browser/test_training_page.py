"""The page of training runs in a real browser: opened from a file, without network."""

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, Page

from glc.evaluation.combined_report import Report
from tests.browser.conftest import OpenPage, Watched
from tests.browser.test_report import pixels
from tests.evaluation.fake_run import write_run
from tests.evaluation.fake_training import (
    config,
    rows_of,
    write_panels,
    write_sweep,
    write_training,
    write_version,
)

FIRST, SECOND, THIRD = (f"transform/stage.lmbda-{k}" for k in (1, 2, 4))
GREY, HIGH, LOW = (90, 90, 90), (100, 40, 200), (60, 40, 200)


def write_page(folder: Path, runs: Path, reload_seconds: float | None = None) -> str:
    path = folder / "page of runs.html"
    Report([runs], path).write(reload_seconds)
    return path.as_uri()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("training")
    return write_page(folder, write_sweep(folder / "runs"))


@pytest.fixture
def opened(open_page: OpenPage, address: str) -> Watched:
    return open_page(address)


def chart(page: Page, title: str) -> Locator:
    found = page.locator("figure.chart").filter(has=page.get_by_text(title, exact=True))
    found.scroll_into_view_if_needed()
    settle(page)
    found.locator("svg .line").first.wait_for(state="attached")
    return found


def settle(page: Page) -> None:
    """Wait until charts that have come into the window are drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")


def lines(figure: Locator) -> list[str]:
    return [line.get_attribute("data-run") or "" for line in figure.locator(".line").all()]


def path(figure: Locator, run: int) -> str:
    return figure.locator(f".line:not(.faint)[data-run='{run}'] path").get_attribute("d") or ""


def test_the_page_opens_from_a_file_without_other_requests(opened: Watched, address: str) -> None:
    assert opened.page.title() == "Training: runs"
    figures = opened.page.locator("figure.chart")
    # Rate and quality, validated metrics, a loss, a codebook, its usage, optimisation.
    assert figures.count() == 3 + 5 + 1 + 1 + 1 + 2
    for figure in figures.all():
        figure.scroll_into_view_if_needed()
        figure.locator("svg .line").first.wait_for(state="attached")
        assert lines(figure) == ["0", "1", "2"]
    assert opened.requests == [address]
    assert not opened.errors


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_curves_are_seen_in_both_colour_schemes(opened: Watched, scheme: str) -> None:
    opened.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    image = pixels(chart(opened.page, "train/loss").locator("> svg"))
    colours = {
        "light": [(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)],
        "dark": [(0x4A, 0xA8, 0xE0), (0xFF, 0x8A, 0x3D), (0x2C, 0xC7, 0x9B)],
    }[scheme]
    for colour in colours:
        assert (np.abs(image - colour).max(2) < 30).sum() > 50
    ground = image[2, 2].mean()
    assert ground > 240 if scheme == "light" else ground < 60


def test_the_list_of_runs_is_a_legend_for_all_charts(opened: Watched) -> None:
    page = opened.page
    box = page.get_by_role("checkbox", name="stage.lmbda-2")
    box.focus()
    page.keyboard.press("Space")
    for title in ("train/loss", "PSNR (dB) ↑ over bpp", "hyper codebook"):
        assert lines(chart(page, title)) == ["0", "2"]
    page.get_by_role("button", name="none").click()
    figure = page.locator("figure.chart").first
    figure.scroll_into_view_if_needed()
    settle(page)
    assert figure.locator(".empty").text_content() == "no selected run has values"
    page.get_by_role("button", name="all", exact=True).click()
    assert lines(chart(page, "train/loss")) == ["0", "1", "2"]


def test_the_run_under_the_pointer_is_highlighted(opened: Watched) -> None:
    figure = chart(opened.page, "train/loss")
    opened.page.locator("#run-list label").nth(1).hover()
    assert figure.locator(".line.on").get_attribute("data-run") == "1"
    opened.page.mouse.move(0, 0)
    assert figure.locator(".lit").count() == 0


def test_axes_smoothing_and_rate_points(opened: Watched) -> None:
    page = opened.page

    def loss() -> str:
        return path(chart(page, "train/loss"), 0)

    plain = loss()
    page.get_by_label("logarithmic y axis").check()
    logarithmic = loss()
    page.get_by_label("logarithmic y axis").uncheck()
    page.get_by_label("logarithmic x axis").check()
    assert len({plain, logarithmic, loss()}) == 3
    page.get_by_label("logarithmic x axis").uncheck()
    page.locator("#smooth").fill("0.9")
    assert loss() != plain
    assert chart(page, "train/loss").locator(".line.faint").count() == 3
    page.locator("#smooth").fill("0")
    assert loss() == plain
    assert not opened.errors  # a smoothed constant differs by rounding
    ends = {}
    for chosen in ("mean", "0", "1"):
        page.locator("#rate").select_option(chosen)
        figure = chart(page, "PSNR (dB) ↑")
        figure.locator("> svg").focus()
        page.keyboard.press("End")
        ends[chosen] = figure.locator(".values .number").first.text_content()
    assert ends == {"mean": "22.5", "0": "22", "1": "23"}
    page.locator("#rate").select_option("all")
    assert lines(chart(page, "PSNR (dB) ↑")) == ["0", "0", "1", "1", "2", "2"]
    page.get_by_label("find", exact=True).fill("psnr")
    assert page.locator("figure.chart:visible").count() == 2
    assert not page.locator("#curves-optimisation").is_visible()


def test_values_are_read_with_the_pointer_and_with_the_keyboard(opened: Watched) -> None:
    page = opened.page
    figure = chart(page, "train/loss")
    plot = figure.locator("> svg")
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 40)
    values = figure.locator(".values")
    # 4 * (1 + exp(-99 / 30)), the largest first.
    last = pytest.approx([k * (1 + np.exp(-99 / 30)) for k in (4, 2, 1)], rel=1e-3)
    assert values.locator("b").text_content() == "step 99"
    assert [float(text) for text in values.locator(".number").all_text_contents()] == last
    page.mouse.move(0, 0)
    assert not values.is_visible()
    plot.focus()
    page.keyboard.press("ArrowRight")
    assert values.locator("b").text_content() == "step 0"
    assert values.locator(".number").all_text_contents() == ["8", "4", "2"]
    page.keyboard.press("ArrowRight")
    assert values.locator("b").text_content() == "step 9"
    page.keyboard.press("End")
    assert [float(text) for text in values.locator(".number").all_text_contents()] == last
    page.keyboard.press("Escape")
    assert not values.is_visible()


def test_rate_points_tell_their_values(opened: Watched) -> None:
    page = opened.page
    figure = chart(page, "PSNR (dB) ↑ over bpp")
    figure.locator("> svg").focus()
    page.keyboard.press("End")
    texts = figure.locator(".values div").all_text_contents()
    assert figure.locator(".values b").text_content() == "stage.lmbda-4"
    assert texts == ["rate point1", "lambda4", "bpp0.08", "PSNR (dB) ↑23", "step99"]
    page.get_by_label("a line joins").select_option("point")
    assert len(lines(figure)) == 2  # one per rate point, over the three runs


def test_the_slider_compares_original_and_reconstructions(opened: Watched) -> None:
    page = opened.page
    stage = page.locator("#panel-slider [data-role=stage]")
    stage.scroll_into_view_if_needed()

    def colours() -> list[tuple[int, ...]]:
        image = pixels(stage)
        row = image[image.shape[0] // 2]
        return [tuple(row[int(share * (len(row) - 1))]) for share in (0.2, 0.8)]

    assert np.abs(np.subtract(colours(), [GREY, HIGH])).max() < 6
    page.get_by_label("right: original or reconstruction").select_option("rate_0")
    assert np.abs(np.subtract(colours(), [GREY, LOW])).max() < 6
    page.get_by_label("right: step").select_option("0")
    assert np.abs(np.subtract(colours(), [GREY, (60, 40, 0)])).max() < 6
    caption = page.locator("#panel-slider [data-role=right-caption]").text_content() or ""
    assert caption.startswith("stage.lmbda-4, step 0, rate point 0 (validation means: 0.0400 bpp, 20.00 dB")
    # The strip beside it, by keyboard; and the divide.
    page.get_by_role("button", name="rate point 1").focus()
    page.keyboard.press("Enter")
    assert np.abs(np.subtract(colours(), [GREY, (100, 40, 0)])).max() < 6
    page.locator("#panel-position").focus()
    page.keyboard.press("Home")
    assert np.abs(np.subtract(colours(), [(100, 40, 0)] * 2)).max() < 6


def test_the_table_is_sorted_by_its_header(opened: Watched) -> None:
    page = opened.page
    head = page.get_by_role("button", name="stage.lmbda")
    names = page.locator("#run-table tbody th")
    assert names.all_text_contents() == [FIRST, SECOND, THIRD]
    head.click()
    head.click()
    assert names.all_text_contents() == [THIRD, SECOND, FIRST]
    assert page.locator("#run-table th[aria-sort=descending]").text_content() == "stage.lmbda"
    head.click()
    assert names.all_text_contents() == [FIRST, SECOND, THIRD]


def test_a_watched_page_reloads_and_keeps_what_was_chosen(open_page: OpenPage, tmp_path: Path) -> None:
    runs = write_sweep(tmp_path / "runs")
    watched = open_page(write_page(tmp_path, runs, reload_seconds=0.2))
    page = watched.page
    page.get_by_role("checkbox", name="stage.lmbda-2").uncheck()
    page.get_by_label("logarithmic y axis").check()
    page.locator("#smooth").fill("0.5")
    page.get_by_label("right: original or reconstruction").select_option("rate_0")
    page.evaluate("window.scrollTo(0, 900)")
    # A new run comes first in the list.
    write_training(runs / "transform" / "stage.lmbda-0.5", level=0.5, stage__lmbda=0.5)
    write_page(tmp_path, runs, reload_seconds=0.2)
    page.get_by_role("checkbox", name="stage.lmbda-0.5").wait_for(timeout=10_000)
    page.get_by_role("button", name="pause").click(position={"x": 3, "y": 3})
    assert page.get_by_role("checkbox", name="stage.lmbda-0.5").is_checked()
    assert not page.get_by_role("checkbox", name="stage.lmbda-2").is_checked()
    assert page.get_by_label("logarithmic y axis").is_checked()
    assert page.locator("#smooth").input_value() == "0.5"
    assert page.get_by_label("right: original or reconstruction").input_value() == "rate_0"
    assert page.locator("#panel-right-run option:checked").text_content() == "stage.lmbda-4"
    assert page.evaluate("window.scrollY") == 900
    assert lines(chart(page, "val/loss")) == ["0", "1", "3"] * 2  # raw and smoothed
    # Paused, it stays.
    opened = len(watched.requests)
    page.wait_for_timeout(2500)
    assert len(watched.requests) == opened
    assert not watched.errors


def test_one_run_without_validation_or_configuration(open_page: OpenPage, tmp_path: Path) -> None:
    rows = [{"step": 0, "train/loss": 1.0}, {"step": 9, "train/loss": float("nan")}]
    write_version(tmp_path / "runs" / "joint", rows, None)
    watched = open_page(write_page(tmp_path, tmp_path / "runs"))
    assert lines(chart(watched.page, "train/loss")) == ["0"]
    assert watched.page.locator("#panel-slider").count() == 0
    assert not watched.errors


def test_hostile_names_are_text(open_page: OpenPage, tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    for i in range(2):
        write_training(tmp_path / "runs" / f"{bad}{i}", stage="</script><b>", stage__lmbda=f"{bad}{i}")
    watched = open_page(write_page(tmp_path, tmp_path / "runs"))
    assert watched.page.get_by_role("checkbox", name=f"{bad}1").count() == 1
    assert watched.page.locator("img:not([src^='data:'])").count() == 0
    figure = chart(watched.page, "train/loss")
    figure.locator("> svg").focus()
    watched.page.keyboard.press("End")
    assert figure.locator(".values span").first.text_content() == f"{bad}0"
    assert len(watched.requests) == 1
    assert not watched.errors


@pytest.mark.parametrize("width", [1440, 390])
def test_sixty_runs(open_page: OpenPage, tmp_path: Path, width: int) -> None:
    runs = tmp_path / "runs"
    for i in range(60):
        folder = runs / "transform" / f"stage.lmbda-{i}"
        write_version(folder, rows_of(level=1 + i / 10), config(folder, stage__lmbda=i))
        write_panels(folder, steps=(100,), images=1)
    watched = open_page(write_page(tmp_path, runs), width=width)
    page = watched.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#run-list").bounding_box()
    assert box is not None
    assert box["height"] < 800
    figure = chart(page, "train/loss")
    assert len(lines(figure)) == 60
    plot = figure.locator("> svg").bounding_box()
    assert plot is not None
    page.mouse.move(plot["x"] + plot["width"] / 2, plot["y"] + plot["height"] / 2)
    # The values nearest to the pointer, and the line under it is marked.
    assert figure.locator(".values .number").count() == 12
    assert "and 48 more" in (figure.locator(".values").text_content() or "")
    assert figure.locator(".line.on").count() == 1
    assert not watched.errors


def test_training_and_evaluation_on_one_page(open_page: OpenPage, tmp_path: Path) -> None:
    runs = write_sweep(tmp_path / "runs", (1.0,))
    evaluations = [write_run(tmp_path / name, name) for name in ("slim", "wide")]
    output = tmp_path / "page.html"
    Report([runs, *evaluations], output).write()
    watched = open_page(output.as_uri(), width=390)
    page = watched.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#slider [data-role=image] option").count() == 3
    assert page.locator("section#plots svg").count() == 3
    assert lines(chart(page, "train/loss")) == ["0"]
    assert not watched.errors
