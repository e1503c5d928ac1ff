"""The page of `glc report` in a real browser: opened from a file, without network."""

import io

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator

from glc.evaluation.report import build_report
from glc.evaluation.results import read_results
from tests.browser.conftest import OpenPage, Watched
from tests.evaluation.fake_run import IMAGES, SIZE, at_rates, write_originals, write_run

RED, GREEN, BLUE = (200, 40, 40), (20, 140, 40), (10, 20, 230)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    runs = [
        read_results(write_run(folder / "a", "slim", colour=RED)),
        read_results(write_run(folder / "b", "wide", at_rates(1.1), colour=GREEN)),
    ]
    page = folder / "page of runs.html"
    page.write_text(build_report(runs, write_originals(folder / "originals")), "utf-8")
    return page.as_uri()


@pytest.fixture
def opened(open_page: OpenPage, report: str) -> Watched:
    return open_page(report)


def pixels(part: Locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(part.screenshot())).convert("RGB")).astype(int)


def colour_at(part: Locator, fraction: float) -> str:
    """Return the strongest channel at a fraction of the width."""
    image = pixels(part)
    seen = image[image.shape[0] // 2, int(fraction * (image.shape[1] - 1))]
    return ("red", "green", "blue")[int(seen.argmax())]


def test_the_page_opens_from_a_file_without_other_requests(opened: Watched, report: str) -> None:
    assert opened.page.title() == "Evaluation on kodak"
    assert opened.requests == [report]
    assert not opened.errors
    broken = "[...document.images].filter(i => i.src && !(i.complete && i.naturalWidth)).map(i => i.alt)"
    assert opened.page.evaluate(broken) == []


def test_the_content_policy_blocks_external_images(opened: Watched) -> None:
    refused = opened.page.evaluate(
        """new Promise((tell) => {
            document.addEventListener("securitypolicyviolation", (event) => tell(event.effectiveDirective));
            document.body.append(Object.assign(new Image(), {src: "http://127.0.0.1:9/image.png"}));
        })"""
    )
    assert refused == "img-src"


def test_the_slider_divides_two_images(opened: Watched) -> None:
    stage = opened.page.locator("[data-role=stage]")
    stage.scroll_into_view_if_needed()
    assert [colour_at(stage, fraction) for fraction in (0.2, 0.8)] == ["red", "green"]
    position = opened.page.locator("[data-role=position]")
    position.fill("90")
    assert [colour_at(stage, fraction) for fraction in (0.2, 0.8, 0.97)] == ["red", "red", "green"]
    # With the mouse: press and drag to the left.
    box = stage.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    opened.page.mouse.move(box["x"] + 0.8 * box["width"], middle)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 0.1 * box["width"], middle)
    opened.page.mouse.up()
    assert [colour_at(stage, fraction) for fraction in (0.03, 0.2, 0.8)] == ["red", "green", "green"]
    # It stays when no button is pressed.
    opened.page.mouse.move(box["x"] + 0.9 * box["width"], middle)
    assert colour_at(stage, 0.2) == "green"
    assert abs(float(position.input_value()) - 10) < 1


def test_the_slider_shows_the_selected_codecs_and_image(opened: Watched) -> None:
    page = opened.page
    stage = page.locator("[data-role=stage]")
    assert page.locator("[data-role=image] option").all_text_contents() == list(IMAGES)
    assert page.locator("[data-role=left] option").all_text_contents() == ["slim", "wide", "original"]
    assert "10 % more bits" in (page.locator("[data-role=rates]").text_content() or "")
    page.locator("[data-role=left]").select_option("original")
    page.locator("[data-role=right]").select_option("slim")
    page.locator("[data-role=image]").select_option(IMAGES[-1])
    stage.scroll_into_view_if_needed()
    assert [colour_at(stage, fraction) for fraction in (0.2, 0.8)] == ["blue", "red"]
    assert page.locator("[data-role=left-caption]").text_content() == "original"
    assert (page.locator("[data-role=right-caption]").text_content() or "").startswith("slim, q")
    assert page.locator("[data-role=rates]").text_content() == ""
    box = stage.bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(SIZE[0] / SIZE[1], rel=0.02)


def test_the_plots_show_all_curves(opened: Watched) -> None:
    plots = opened.page.locator("section#plots svg")
    assert plots.count() == 3
    for i in range(3):
        plot = plots.nth(i)
        plot.scroll_into_view_if_needed()
        texts = plot.locator("text").all_text_contents()
        assert {"rate (bits per pixel)", "slim", "wide", "GLC (published)"} <= set(texts)
        image = pixels(plot)
        assert image.shape[1] > 300
        for line in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # the first two runs'
            assert (np.abs(image - line).max(2) < 12).sum() > 50


@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_is_wider_than_the_window(open_page: OpenPage, report: str, width: int) -> None:
    page = open_page(report, width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("nav a", has_text="BD-rate").click()
    assert page.evaluate("location.hash") == "#bd-rate"
    assert page.locator("section#bd-rate h2").is_visible()
