"""The operations of the web app, without a browser."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import glc
from glc.app.service import GREY, KEPT, OWN, Service
from tests.codec.fixed_model import fixed_codec_weights, fixed_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    fixed_codec_weights(folder / "mine.safetensors")
    fixed_codec_weights(folder / "other.safetensors", seed=1)
    Image.fromarray(fixed_image(64, 96)).save(folder / "photo.png")
    (folder / "text.png").write_text("no image")
    return folder


@pytest.fixture
def service(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setenv("GLC_MODELS", str(folder))
    monkeypatch.setenv("GLC_OFFLINE", "1")
    return Service("mine", "cpu", max_bytes=100_000, max_pixels=96 * 64)


def test_compress_gives_the_codecs_file_and_open_decodes_it(service: Service, folder: Path) -> None:
    coded = service.compress(folder / "photo.png", "mine", quality=30)
    codec = glc.load(folder / "mine.safetensors", "cpu")
    data = coded.file.read_bytes()
    assert coded.file.name == "photo.glc"
    assert data == codec.compress(folder / "photo.png", 30)
    assert np.array_equal(np.asarray(coded.image), np.asarray(codec.decompress(data)))
    assert coded.coarse is not None
    assert coded.coarse.size == (96, 64)
    assert coded.metrics["file"] == f"{len(data):,} bytes"
    assert coded.metrics["bits per pixel"] == f"{8 * len(data) / 96 / 64:.4f}"
    error = (np.asarray(coded.original, float) - np.asarray(coded.image)) ** 2
    assert coded.metrics["PSNR"] == f"{10 * np.log10(255**2 / error.mean()):.2f} dB"
    assert "MS-SSIM" not in coded.metrics  # not defined for so small an image
    opened, shown, none = service.open(coded.file)
    assert np.array_equal(np.asarray(opened), np.asarray(coded.image))
    assert shown["model"] == "mine"
    assert (none, coded.uncertain) == (None, None)


def test_uncertainty_is_mapped_if_wanted(service: Service, folder: Path) -> None:
    coded = service.compress(folder / "photo.png", "mine", uncertainty=True)
    expected = glc.load(folder / "mine.safetensors", "cpu").uncertainty(coded.file.read_bytes())
    opened, _, uncertain = service.open(coded.file, uncertainty=True)
    assert coded.image == opened == expected.image
    assert coded.uncertain == uncertain == expected.map


def test_recently_used_codecs_stay_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"m{i}" for i in range(KEPT + 1)]
    for name in names:
        (tmp_path / f"{name}.safetensors").write_bytes((folder / "mine.safetensors").read_bytes())
    monkeypatch.setenv("GLC_MODELS", str(tmp_path))
    service = Service("m0", "cpu")
    first, second = service.codec("m0"), service.codec("m1")
    for name in names[2:-1]:
        service.codec(name)
    assert service.codec("m0") is first
    service.codec(names[-1])
    assert service.codec("m0") is first
    assert service.codec("m1") is not second


def test_a_file_with_the_name_of_a_model_does_not_hide_it(
    service: Service, folder: Path, tmp_path: Path
) -> None:
    twin = tmp_path / "mine.safetensors"
    twin.write_bytes((folder / "other.safetensors").read_bytes())
    both = Service(str(twin), "cpu")
    assert both.first == "mine.safetensors"
    assert {"mine", "mine.safetensors"} <= set(both.models)
    assert both.codec("mine").weights.fingerprint != both.codec(both.first).weights.fingerprint
    # The model's own file is that model.
    named = Service(str(folder / "mine.safetensors"), "cpu")
    assert named.first == "mine"
    assert named.models.keys() == service.models.keys()


def test_a_target_above_the_largest_file_adds_a_note(service: Service, folder: Path) -> None:
    best = service.compress(folder / "photo.png", "mine", quality=100)
    coded = service.compress(folder / "photo.png", "mine", target_size=50_000)
    assert coded.file.read_bytes() == best.file.read_bytes()
    assert "quality 100 needs no more" in coded.note


def test_the_background_is_behind_transparent_pixels(service: Service, folder: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    white = service.compress(tmp_path / "clear.png", "mine")
    assert white.original.getpixel((9, 9)) == (255, 255, 255)
    assert "white" in white.note
    service.background = "#102030"
    assert service.compress(tmp_path / "clear.png", "mine").original.getpixel((9, 9)) == (16, 32, 48)


def test_limits_are_checked_before_decoding(service: Service, folder: Path, tmp_path: Path) -> None:
    Image.new("L", (97, 64)).save(tmp_path / "wide.png")
    with pytest.raises(glc.ImageError, match=r"wide\.png: 97 x 64 pixels, more than the limit of 0\.006144"):
        service.compress(tmp_path / "wide.png", "mine")
    (tmp_path / "long.glc").write_bytes(b"x" * 100_001)
    with pytest.raises(glc.ImageError, match=r"long\.glc: 0\.1 MB, more than the limit of 0\.1 MB"):
        service.open(tmp_path / "long.glc")
    large = glc.load(folder / "mine.safetensors", "cpu").compress(fixed_image(97, 64))
    (tmp_path / "large.glc").write_bytes(large)
    with pytest.raises(glc.SizeLimitError):
        service.open(tmp_path / "large.glc")
    with pytest.raises(glc.ImageError, match=r"more than the limit"):
        service.canvas(tmp_path / "wide.png")
    with pytest.raises(glc.ImageError, match=r"more than the limit"):
        service.inpaint(tmp_path / "wide.png", np.ones((64, 97), bool), "mine", OWN, 50)


def test_invalid_input_raises_typed_errors(service: Service, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(glc.ImageError, match=r"text\.png: not an image in a known format"):
        service.compress(folder / "text.png", "mine")
    with pytest.raises(glc.ImageError, match="choose one first"):
        service.compress(None, "mine")
    with pytest.raises(glc.NotGlcError):
        service.open(folder / "photo.png")
    fixed_codec_weights(tmp_path / "third.safetensors", seed=2)
    third = glc.load(tmp_path / "third.safetensors", "cpu")
    (tmp_path / "a.glc").write_bytes(third.compress(fixed_image(8, 8)))
    with pytest.raises(glc.WrongWeightsError, match=r"a\.glc: made with weights .* match no model"):
        service.open(tmp_path / "a.glc")
    with pytest.raises(glc.WeightsError, match="no encoder 'none'"):
        service.restore(folder / "photo.png", "mine", "none", 50)
    with pytest.raises(glc.ImageError, match="paint over"):
        service.inpaint(folder / "photo.png", np.zeros((64, 96), bool), "mine", OWN, 50)


def test_a_corrupt_model_does_not_prevent_decoding_with_others(
    service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = service.compress(folder / "photo.png", "mine").file
    (folder / "broken.safetensors").write_bytes(b"nothing")
    try:
        fresh = Service("mine", "cpu", max_bytes=100_000)
    finally:
        (folder / "broken.safetensors").unlink()
    assert "broken" in fresh.models
    assert fresh.open(file)[1]["model"] == "mine"


def test_inpaint_fills_holes_with_the_grey_of_training(service: Service, folder: Path) -> None:
    image = Image.open(folder / "photo.png")
    mask = np.zeros((64, 96), bool)
    mask[20:30, 40:60] = True
    holed, coded = service.inpaint(folder / "photo.png", mask, "mine", OWN, 50)
    values = np.asarray(holed)
    assert (values[mask] == GREY).all()
    outside = np.ones_like(mask)
    outside[19:31, 39:61] = False  # the soft edge of the brush
    assert np.array_equal(values[outside], np.asarray(image)[outside])
    assert coded.file.read_bytes() == glc.load(folder / "mine.safetensors", "cpu").compress(holed, 50)
    assert coded.file.name == "photo.glc"
    assert "PSNR" not in coded.metrics  # the image with holes is not a reference


def test_canvas_fits_into_the_upload_limit(service: Service, folder: Path, tmp_path: Path) -> None:
    assert service.canvas(folder / "photo.png").size == (96, 64)
    noise = np.random.default_rng(0).integers(0, 256, (60, 100, 4), np.uint8)
    Image.fromarray(noise[..., :3]).save(tmp_path / "noise.png")
    service.max_bytes = 20_000
    small = service.canvas(tmp_path / "noise.png")
    assert small.size == (81, 48)
    stream = io.BytesIO()
    Image.fromarray(noise[:48, :81]).save(stream, "PNG")
    assert len(stream.getvalue()) < service.max_bytes
    # The mask is scaled to the size of the image.
    mask = np.zeros((48, 81), bool)
    mask[20:30, 30:40] = True
    lost = (np.asarray(service.inpaint(tmp_path / "noise.png", mask, "mine", OWN, 50)[0]) == GREY).all(-1)
    rows, columns = np.nonzero(lost)
    assert (rows.min(), columns.min(), rows.max(), columns.max()) == pytest.approx((24, 36, 38, 50), abs=1)


def test_a_model_may_be_given_by_its_file_alone(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLC_MODELS", str(tmp_path))
    alone = Service(str(folder / "other.safetensors"), "cpu")
    assert alone.first == "other"
    assert alone.models["other"] == str(folder / "other.safetensors")
