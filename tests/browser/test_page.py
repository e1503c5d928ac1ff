"""The web app of `glc serve` in a real browser.

gradio needs an older Pillow than training. If it is not installed, GLC_APP_PATH may name a folder that
contains it (`make app` fills build/app); otherwise these tests are skipped.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import glc
from glc.app.decoder_page import has_runtime
from glc.codec.weights.file import read_weights
from glc.codec.weights.variants import save_variant
from tests.app.served import serve
from tests.browser.conftest import OpenPage, Watched
from tests.codec.fixed_model import fixed_codec_weights, fixed_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an encoder and a decoder for it, images, and a file that is not an image."""
    folder = tmp_path_factory.mktemp("page")
    codec = fixed_codec_weights(folder / "mine.safetensors")
    weights = read_weights(codec)
    for name, kind in (("mine-denoise", "encoder"), ("mine-inpaint", "encoder"), ("mine-style", "decoder")):
        state = getattr(weights.model, kind).state_dict()
        moved = {key: value * 1.05 for key, value in state.items()}
        part = folder / f"{name}.{kind}.safetensors"
        save_variant(part, kind, moved, weights.description[kind], weights.fingerprint)  # type: ignore[arg-type]
    Image.fromarray(fixed_image(192, 256)).save(folder / "photo.png")
    Image.new("L", (2000, 1000)).save(folder / "large.png")
    noise = np.random.default_rng(0).integers(0, 256, (500, 640, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    (folder / "text.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Address of the app, served by the command in another process."""
    with serve(folder) as served:
        yield f"http://127.0.0.1:{served.port}/"
    assert "Traceback" not in served.log.read_text()


@pytest.fixture
def page(address: str, open_page: OpenPage) -> Iterator[Watched]:
    watched = open_page(address, offline=False)
    watched.page.set_default_timeout(60_000)
    watched.page.get_by_role("button", name="Compress").wait_for()
    yield watched
    # All requests stay on this machine.
    assert not [url for url in watched.requests if not url.startswith((address, "blob:"))]


def assert_no_errors(watched: Watched) -> None:
    """Check that the console is free of errors, except for a known message of gradio."""
    assert not [text for text in watched.errors if "not implemented" not in text]


def upload(watched: Watched, path: Path) -> None:
    visible = watched.page.locator("[role=tabpanel]:visible input[type=file]").first
    visible.set_input_files(path)


def cell(watched: Watched, name: str) -> str:
    """Return the value of a row of the visible table."""
    panel = watched.page.locator("[role=tabpanel]:visible")
    row = panel.locator("tr", has=watched.page.get_by_text(name, exact=True)).first
    row.wait_for()
    return row.locator("td, th").nth(1).inner_text()


def download(watched: Watched, name: str) -> bytes:
    panel = watched.page.locator("[role=tabpanel]:visible")
    link = panel.locator(f"a[download='{name}']").first
    link.wait_for()
    with watched.page.expect_download() as started:
        link.click()
    return Path(started.value.path()).read_bytes()


def sizes_of_images(watched: Watched) -> list[list[int]]:
    script = "panel => [...panel.querySelectorAll('img')].map(i => [i.naturalWidth, i.naturalHeight])"
    return watched.page.locator("[role=tabpanel]:visible").evaluate(script)


def test_an_uploaded_image_is_compressed_and_the_file_can_be_opened(
    page: Watched, folder: Path, tmp_path: Path
) -> None:
    upload(page, folder / "photo.png")
    data = glc.load(folder / "mine.safetensors", "cpu").compress(folder / "photo.png", 50)
    assert cell(page, "file") == f"{len(data):,} bytes"
    assert cell(page, "bits per pixel") == f"{8 * len(data) / 192 / 256:.4f}"
    assert re.fullmatch(r"\d+\.\d\d dB", cell(page, "PSNR"))
    assert float(cell(page, "MS-SSIM")) < 1
    page.page.wait_for_function("document.querySelectorAll('[role=tabpanel] img').length >= 3")
    assert [256, 192] in sizes_of_images(page)  # the slider's two images and the hyper-latent's
    assert download(page, "photo.glc") == data

    (tmp_path / "photo.glc").write_bytes(data)
    page.page.get_by_role("tab", name="Open a file").click()
    upload(page, tmp_path / "photo.glc")
    assert cell(page, "model") == "mine"
    assert_no_errors(page)


@pytest.mark.skipif(not has_runtime(), reason="ONNX Runtime Web is missing: run `make web`")
def test_the_decoder_in_the_browser_is_linked(page: Watched, folder: Path, tmp_path: Path) -> None:
    codec = glc.load(folder / "mine.safetensors", "cpu")
    (tmp_path / "photo.glc").write_bytes(codec.compress(folder / "photo.png", 50))
    with page.page.context.expect_page() as opened:
        page.page.get_by_role("link", name="Decode files of mine in this browser, offline").click()
    decoder = opened.value
    decoder.set_default_timeout(60_000)
    assert decoder.evaluate("crossOriginIsolated")  # threads
    decoder.locator("#choose").set_input_files(tmp_path / "photo.glc")
    decoder.get_by_text("decoded in").wait_for()
    assert "256 × 192 pixels" in decoder.locator("#facts").inner_text()


MESSAGES = {
    "text.png": "text.png: not an image in a known format",
    "large.png": "large.png: 2000 x 1000 pixels, more than the limit of 1 million",
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("tab", ["Compress", "Fill holes"])
def test_an_invalid_image_shows_one_line(page: Watched, folder: Path, tab: str, name: str) -> None:
    page.page.get_by_role("tab", name=tab).click()
    upload(page, folder / name)
    page.page.get_by_text(MESSAGES[name]).first.wait_for()
    assert "Traceback" not in page.page.inner_text("body")
    if tab == "Compress":  # gradio's editor logs warnings of its own
        assert_no_errors(page)


def test_an_image_is_restored_and_rendered_in_a_style(page: Watched, folder: Path) -> None:
    codec = folder / "mine.safetensors"
    for tab, button, quality, part in (
        ("Restore", "Restore", 50, {"encoder": folder / "mine-denoise.encoder.safetensors"}),
        ("Style", "Render", 100, {}),
    ):
        page.page.get_by_role("tab", name=tab).click()
        upload(page, folder / "photo.png")
        page.page.locator("[role=tabpanel]:visible").get_by_text("photo", exact=False).first.wait_for()
        page.page.get_by_role("button", name=button, exact=True).click()
        wanted = glc.load(codec, "cpu", **part).compress(folder / "photo.png", quality)
        assert download(page, "photo.glc") == wanted


def test_holes_are_painted_and_filled(page: Watched, folder: Path) -> None:
    page.page.get_by_role("tab", name="Fill holes").click()
    page.page.get_by_role("button", name="Fill", exact=True).click()
    page.page.get_by_text("choose one first").first.wait_for()
    # The upload limit applies to the image and to the painted layers sent back.
    upload(page, folder / "noise.png")
    canvas = page.page.locator("[role=tabpanel]:visible canvas").first
    canvas.wait_for()
    page.page.wait_for_timeout(1500)  # the image fades in
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.page.mouse.move(x - 30, y)
    page.page.mouse.down()
    page.page.mouse.move(x + 30, y + 10, steps=8)
    page.page.mouse.up()
    page.page.wait_for_timeout(500)
    page.page.get_by_role("button", name="Fill", exact=True).click()
    data = download(page, "noise.glc")
    codec = glc.load(folder / "mine.safetensors", "cpu")
    assert codec.decompress(data).size == (640, 500)
    assert data != codec.compress(folder / "noise.png", 50)
