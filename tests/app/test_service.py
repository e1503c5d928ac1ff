"""What the page does, without the page."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import glc
from glc.app.service import GREY, KEPT, OWN, Studio
from tests.codec.fixed_model import fixed_codec_weights, fixed_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studio")
    fixed_codec_weights(folder / "mine.safetensors")
    fixed_codec_weights(folder / "other.safetensors", seed=1)
    Image.fromarray(fixed_image(64, 96)).save(folder / "photo.png")
    (folder / "text.png").write_text("no image")
    return folder


@pytest.fixture
def studio(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    monkeypatch.setenv("GLC_MODELS", str(folder))
    monkeypatch.setenv("GLC_OFFLINE", "1")
    return Studio("mine", "cpu", max_bytes=100_000, max_pixels=96 * 64)


def test_a_image_becomes_a_file_that_the_codec_opens(studio: Studio, folder: Path) -> None:
    coded = studio.compress(folder / "photo.png", "mine", quality=30)
    codec = glc.load(folder / "mine.safetensors", "cpu")
    data = coded.file.read_bytes()
    assert coded.file.name == "photo.glc"
    assert data == codec.compress(folder / "photo.png", 30)
    assert np.array_equal(np.asarray(coded.image), np.asarray(codec.decompress(data)))
    assert coded.coarse is not None
    assert coded.coarse.size == (96, 64)
    assert coded.figures["file"] == f"{len(data):,} bytes"
    assert coded.figures["bits per pixel"] == f"{8 * len(data) / 96 / 64:.4f}"
    error = (np.asarray(coded.original, float) - np.asarray(coded.image)) ** 2
    assert coded.figures["PSNR"] == f"{10 * np.log10(255**2 / error.mean()):.2f} dB"
    assert "MS-SSIM" not in coded.figures  # not defined for so small an image
    opened, told = studio.open(coded.file)
    assert np.array_equal(np.asarray(opened), np.asarray(coded.image))
    assert told["model"] == "mine"


def test_the_codecs_used_last_stay_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"m{i}" for i in range(KEPT + 1)]
    for name in names:
        (tmp_path / f"{name}.safetensors").write_bytes((folder / "mine.safetensors").read_bytes())
    monkeypatch.setenv("GLC_MODELS", str(tmp_path))
    studio = Studio("m0", "cpu")
    first, second = studio.codec("m0"), studio.codec("m1")
    for name in names[2:-1]:
        studio.codec(name)
    assert studio.codec("m0") is first
    studio.codec(names[-1])
    assert studio.codec("m0") is first
    assert studio.codec("m1") is not second


def test_a_file_called_as_a_model_does_not_hide_it(studio: Studio, folder: Path, tmp_path: Path) -> None:
    twin = tmp_path / "mine.safetensors"
    twin.write_bytes((folder / "other.safetensors").read_bytes())
    both = Studio(str(twin), "cpu")
    assert both.first == "mine.safetensors"
    assert {"mine", "mine.safetensors"} <= set(both.models)
    assert both.codec("mine").weights.fingerprint != both.codec(both.first).weights.fingerprint


def test_the_file_of_a_model_is_that_model(studio: Studio, folder: Path) -> None:
    named = Studio(str(folder / "mine.safetensors"), "cpu")
    assert named.first == "mine"
    assert named.models.keys() == studio.models.keys()


def test_a_target_too_large_leaves_a_note(studio: Studio, folder: Path) -> None:
    best = studio.compress(folder / "photo.png", "mine", quality=100)
    coded = studio.compress(folder / "photo.png", "mine", target_size=50_000)
    assert coded.file.read_bytes() == best.file.read_bytes()
    assert "quality 100 needs no more" in coded.note


def test_limits_hold_before_anything_is_decoded(studio: Studio, folder: Path, tmp_path: Path) -> None:
    Image.new("L", (97, 64)).save(tmp_path / "wide.png")
    with pytest.raises(glc.ImageError, match=r"wide\.png: 97 x 64 pixels, more than the limit of 0\.006144"):
        studio.compress(tmp_path / "wide.png", "mine")
    (tmp_path / "long.glc").write_bytes(b"x" * 100_001)
    with pytest.raises(glc.ImageError, match=r"long\.glc: 0\.1 MB, more than the limit of 0\.1 MB"):
        studio.open(tmp_path / "long.glc")
    large = glc.load(folder / "mine.safetensors", "cpu").compress(fixed_image(97, 64))
    (tmp_path / "large.glc").write_bytes(large)
    with pytest.raises(glc.SizeLimitError):
        studio.open(tmp_path / "large.glc")
    with pytest.raises(glc.ImageError, match=r"more than the limit"):
        studio.canvas(tmp_path / "wide.png")
    with pytest.raises(glc.ImageError, match=r"more than the limit"):
        studio.inpaint(tmp_path / "wide.png", np.ones((64, 97), bool), "mine", OWN, 50)


def test_what_cannot_be_done_is_said(studio: Studio, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(glc.ImageError, match=r"text\.png: not an image in a known format"):
        studio.compress(folder / "text.png", "mine")
    with pytest.raises(glc.ImageError, match="choose an image first"):
        studio.compress(None, "mine")
    with pytest.raises(glc.NotGlcError):
        studio.open(folder / "photo.png")
    fixed_codec_weights(tmp_path / "third.safetensors", seed=2)
    third = glc.load(tmp_path / "third.safetensors", "cpu")
    (tmp_path / "a.glc").write_bytes(third.compress(fixed_image(8, 8)))
    with pytest.raises(glc.WrongWeightsError, match=r"a\.glc: written with the weights .* no model here has"):
        studio.open(tmp_path / "a.glc")
    with pytest.raises(glc.WeightsError, match="no encoder 'none'"):
        studio.restore(folder / "photo.png", "mine", "none", 50)
    with pytest.raises(glc.ImageError, match="paint over"):
        studio.inpaint(folder / "photo.png", np.zeros((64, 96), bool), "mine", OWN, 50)


def test_a_broken_model_beside_does_not_keep_files_from_being_opened(
    studio: Studio, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = studio.compress(folder / "photo.png", "mine").file
    (folder / "broken.safetensors").write_bytes(b"nothing")
    try:
        fresh = Studio("mine", "cpu", max_bytes=100_000)
    finally:
        (folder / "broken.safetensors").unlink()
    assert "broken" in fresh.models
    assert fresh.open(file)[1]["model"] == "mine"


def test_holes_are_what_the_encoder_was_trained_on(studio: Studio, folder: Path) -> None:
    image = Image.open(folder / "photo.png")
    mask = np.zeros((64, 96), bool)
    mask[20:30, 40:60] = True
    holed, coded = studio.inpaint(folder / "photo.png", mask, "mine", OWN, 50)
    values = np.asarray(holed)
    assert (values[mask] == GREY).all()
    outside = np.ones_like(mask)
    outside[19:31, 39:61] = False  # the soft edge of the brush
    assert np.array_equal(values[outside], np.asarray(image)[outside])
    assert coded.file.read_bytes() == glc.load(folder / "mine.safetensors", "cpu").compress(holed, 50)
    assert coded.file.name == "photo.glc"
    assert "PSNR" not in coded.figures  # against an image with holes it would say nothing


def test_what_the_page_sends_back_is_within_its_limit(studio: Studio, folder: Path, tmp_path: Path) -> None:
    assert studio.canvas(folder / "photo.png").size == (96, 64)
    noise = np.random.default_rng(0).integers(0, 256, (60, 100, 4), np.uint8)
    Image.fromarray(noise[..., :3]).save(tmp_path / "noise.png")
    studio.max_bytes = 20_000
    small = studio.canvas(tmp_path / "noise.png")
    assert small.size == (81, 48)
    stream = io.BytesIO()
    Image.fromarray(noise[:48, :81]).save(stream, "PNG")
    assert len(stream.getvalue()) < studio.max_bytes
    # What was painted there is as large on the image.
    mask = np.zeros((48, 81), bool)
    mask[20:30, 30:40] = True
    lost = (np.asarray(studio.inpaint(tmp_path / "noise.png", mask, "mine", OWN, 50)[0]) == GREY).all(-1)
    rows, columns = np.nonzero(lost)
    assert (rows.min(), columns.min(), rows.max(), columns.max()) == pytest.approx((24, 36, 38, 50), abs=1)


def test_without_a_model_the_fix_is_named(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLC_MODELS", str(tmp_path))
    if not glc.codec.weights.catalog.catalog():
        with pytest.raises(glc.WeightsError, match="--model"):
            Studio()
    alone = Studio(str(folder / "other.safetensors"), "cpu")
    assert alone.first == "other"
    assert alone.models["other"] == str(folder / "other.safetensors")
