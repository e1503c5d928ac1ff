"""Which files count as images, and what is said about those that do not."""

import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glc.data.images import formats, is_image_name, list_images, read_rgb, remedy
from glc.errors import ImageError
from tests.oddities import CHART, P3, decode_srgb, from_linear, jpeg, rgb_profile


@pytest.fixture
def fresh_formats() -> Iterator[None]:
    """Look for decoders again, before and after."""
    caches = (formats.image_suffixes, formats.open_formats)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def only(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    monkeypatch.setattr(
        formats.importlib.util,
        "find_spec",
        lambda name: types.SimpleNamespace() if name in installed else None,
    )


def test_images_that_are_left_out_are_named(
    tmp_path: Path, fresh_formats: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    only(monkeypatch)
    Image.fromarray(CHART).save(tmp_path / "a.png")
    for name in ("IMG_1.HEIC", "IMG_2.heic", "x.jxl", "raw.CR2", "notes.txt", ".hidden.heic"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in list_images(tmp_path)] == ["a.png"]
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}: images left out: ")
    assert (
        set(line.split(": ", 2)[2].split("; "))
        == {
            "2 (e.g. IMG_1.HEIC): pip install pillow-heif",
            "1 (e.g. x.jxl): pip install pillow-jxl-plugin",
            "1 (e.g. raw.CR2): convert raw files to TIFF with dcraw_emu",
        }
        or "2 (e.g. IMG_2.heic)" in line
    )
    with pytest.raises(
        ImageError, match=r"IMG_1\.HEIC: not an image in a known format; pip install pillow-heif"
    ):
        read_rgb(tmp_path / "IMG_1.HEIC")
    caplog.clear()
    (tmp_path / "sub").mkdir()
    assert list_images(tmp_path / "sub") == []
    assert not caplog.messages


def test_installed_decoders_are_used(fresh_formats: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for pillow-heif: registered when an image is opened, and its suffixes count."""

    class Heif(Image.Image):
        format = "HEIF"

    def opener(stream: io.BytesIO, name: str) -> Image.Image:
        image = Image.new("RGB", (3, 2), (200, 100, 50))
        image.format = "HEIF"
        image.info = {"nclx_profile": {"color_primaries": 12, "transfer_characteristics": 13}}
        return image

    def register() -> None:
        Image.register_open("HEIF", opener, lambda start: start.startswith(b"HEIC"))  # type: ignore[arg-type]

    module = types.ModuleType("pillow_heif")
    module.register_heif_opener = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    only(monkeypatch, "pillow_heif")
    assert is_image_name("a.HEIC")
    assert not is_image_name("a.jxl")
    assert remedy("a.heic") == ""
    expected = from_linear(decode_srgb(np.array([200, 100, 50]) / 255), P3)
    assert np.abs(np.asarray(read_rgb(b"HEIC......")) - expected).max() < 0.6


def test_jpeg_xl(tmp_path: Path, fresh_formats: None) -> None:
    pytest.importorskip("pillow_jxl")
    # The plugin 1.3.8 stores a profile only when it repacks a JPEG.
    (tmp_path / "a.jpg").write_bytes(jpeg(CHART, icc_profile=rgb_profile(P3, None)))
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.jxl", lossless_jpeg=True)
    image = read_rgb(tmp_path / "a.jxl")
    assert np.abs(np.asarray(image, float) - from_linear(decode_srgb(CHART / 255), P3)).max() < 5
    assert is_image_name("a.jxl")


def test_suffixes() -> None:
    for name in ("a.JPG", "b.jfif", "c.tiff", "d.Jp2", "e.apng"):
        assert is_image_name(name)
    for name in ("a.txt", "jpg", "b.heic.txt", "c.svg"):
        assert not is_image_name(name)
    assert remedy("a.svg") == "render SVG with rsvg-convert"
    assert remedy("a.txt") == remedy("a.png") == ""
