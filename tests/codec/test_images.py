"""Images that the codec accepts, converts, pads and refuses."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import glc
from glc.codec.bitstream import unpack
from glc.data.images import crop, pad, padded_size
from tests.codec.fixed_model import fixed_codec_weights, fixed_image

MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "I;16",
    "I",
    "F",
    "YCbCr",
    "HSV",
    "LAB",
)
SIZES = ((1, 1), (1, 70), (65, 3), (64, 64))
"""Height and width."""


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> glc.Codec:
    return glc.load(fixed_codec_weights(tmp_path_factory.mktemp("weights") / "fixed.safetensors"), "cpu")


def grey(height: int, width: int) -> np.ndarray:
    return fixed_image(height, width)[:, :, 1]


def in_mode(mode: str, height: int, width: int) -> Image.Image:
    """Return an image of any mode."""
    levels = grey(height, width)
    if mode == "I;16":
        return Image.fromarray(levels.astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(levels.astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray(levels.astype(np.float32) / 255)
    if mode == "PA":
        return Image.fromarray(levels).convert("P").convert("PA")
    if mode == "RGBa":
        return Image.fromarray(fixed_image(height, width)).convert("RGBA").convert("RGBa")
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), fixed_image(height, width).tobytes())
    return Image.fromarray(fixed_image(height, width)).convert(mode)


def as_grey(codec: glc.Codec, levels: np.ndarray) -> bytes:
    """Return the file of the RGB image with these levels in all channels."""
    return codec.compress(np.repeat(levels[:, :, None], 3, axis=2))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_mode_and_size_round_trips_to_its_size(
    codec: glc.Codec, mode: str, height: int, width: int
) -> None:
    image = in_mode(mode, height, width)
    assert image.mode == mode
    data = codec.compress(image)
    header, _ = unpack(data)
    assert (header.height, header.width) == (height, width)
    decoded = codec.decompress(data)
    assert (decoded.mode, decoded.size) == ("RGB", (width, height))
    assert image.mode == mode, "the image given was changed"


@pytest.mark.parametrize("mode", ["L", "P", "PA", "I;16", "I", "F"])
def test_grey_images_of_any_depth_are_one_image(codec: glc.Codec, mode: str) -> None:
    image = in_mode(mode, 33, 47) if mode != "P" else Image.fromarray(grey(33, 47)).convert("P")
    assert codec.compress(image) == as_grey(codec, grey(33, 47))


def test_alpha_is_composited_on_white(codec: glc.Codec) -> None:
    rgb = fixed_image(40, 40)
    alpha = np.where(np.arange(40)[:, None] < np.arange(40)[None], 255, 0).astype(np.uint8)
    expected = codec.compress(np.where(alpha[:, :, None] > 0, rgb, 255).astype(np.uint8))
    assert codec.compress(np.dstack([rgb, alpha])) == expected
    image = Image.fromarray(rgb)
    image.putalpha(Image.fromarray(alpha))
    assert codec.compress(image) == expected
    levels = np.dstack([grey(40, 40), alpha])
    assert codec.compress(Image.fromarray(levels)) == as_grey(
        codec, np.where(alpha > 0, grey(40, 40), 255).astype(np.uint8)
    )


def test_colours_are_converted_by_pillow(codec: glc.Codec) -> None:
    for mode in ("CMYK", "YCbCr", "HSV", "1"):
        image = in_mode(mode, 40, 40)
        assert codec.compress(image) == codec.compress(image.convert("RGB")), mode


def test_orientation_is_applied(codec: glc.Codec, tmp_path: Path) -> None:
    stored = Image.fromarray(fixed_image(30, 50))
    turned = {
        3: stored.transpose(Image.Transpose.ROTATE_180),
        6: stored.transpose(Image.Transpose.ROTATE_270),
        7: stored.transpose(Image.Transpose.TRANSVERSE),
    }
    for value, upright in turned.items():
        exif = Image.Exif()
        exif[0x0112] = value
        stored.save(tmp_path / "turned.png", exif=exif)
        data = codec.compress(tmp_path / "turned.png")
        assert data == codec.compress(upright)
        assert codec.decompress(data).size == upright.size


def test_first_frame_of_an_animation_is_used(codec: glc.Codec, tmp_path: Path) -> None:
    levels = grey(32, 32)
    frames = [Image.fromarray(shown) for shown in (levels, 255 - levels)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    opened = Image.open(tmp_path / "two.gif")
    opened.seek(1)
    expected = as_grey(codec, levels)
    assert codec.compress(tmp_path / "two.gif") == expected
    assert codec.compress(opened) == expected


def test_paths_bytes_files_and_arrays_are_one_image(codec: glc.Codec, tmp_path: Path) -> None:
    array = fixed_image(41, 66)
    path = tmp_path / "an image.png"
    Image.fromarray(array).save(path)
    expected = codec.compress(array)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), Image.open(path)):
        assert codec.compress(source) == expected
    assert codec.compress(np.asfortranarray(array)) == expected
    assert codec.compress(np.repeat(array, 2, axis=1)[:, ::2]) == expected
    assert codec.compress(array[:, :, 1]) == as_grey(codec, array[:, :, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_tensors_in_0_1_are_accepted(codec: glc.Codec, dtype: torch.dtype) -> None:
    # Black and white are the levels that have the same value in every type.
    array = np.where(fixed_image(40, 56) > 100, 255, 0).astype(np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1).to(dtype) / 255
    before = tensor.clone()
    assert codec.compress(tensor) == codec.compress(array)
    assert codec.compress(tensor.requires_grad_()) == codec.compress(array)
    assert torch.equal(tensor, before)


def test_float_tensors_of_every_level_come_close_to_the_array(codec: glc.Codec) -> None:
    array = fixed_image(64, 64)
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    from_array = np.asarray(codec.decompress(codec.compress(array)), np.float64)
    from_tensor = np.asarray(codec.decompress(codec.compress(tensor)), np.float64)
    assert np.abs(from_array - from_tensor).mean() < 1


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((8, 8), np.uint16),
        np.zeros((8, 8, 3), bool),
        np.zeros((3, 8, 9), np.uint8),
        np.zeros((8, 8, 5), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 0), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_refuses_other_arrays(codec: glc.Codec, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"an array must be uint8 \[H, W, 3\], got") as caught:
        codec.compress(array)
    assert str(list(array.shape)) in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(1, 3, 8, 8),
        lambda: torch.zeros(8, 8, 3),
        lambda: torch.zeros(4, 8, 8),
        lambda: torch.zeros(8, 8),
        lambda: torch.zeros(3, 8, 8, dtype=torch.uint8),
        lambda: torch.zeros(3, 0, 8),
        lambda: torch.full((3, 8, 8), 1.01),
        lambda: torch.full((3, 8, 8), -0.01),
        lambda: torch.full((3, 8, 8), float("nan")),
        lambda: torch.full((3, 8, 8), 255.0),
    ],
)
def test_refuses_other_tensors(codec: glc.Codec, make: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"a tensor must (be floats \[3, H, W\]|hold pixels)"):
        codec.compress(make())


def test_refuses_wide_grey_beyond_its_range(codec: glc.Codec) -> None:
    for array, words in (
        (np.full((4, 4), 65536, np.int32), "integer image with values outside 0..65535"),
        (np.full((4, 4), -1, np.int32), "integer image with values outside 0..65535"),
        (np.full((4, 4), 1.5, np.float32), "float image with values outside 0..1"),
        (np.full((4, 4), np.nan, np.float32), "float image with values outside 0..1"),
    ):
        with pytest.raises(glc.ImageError, match=words):
            codec.compress(Image.fromarray(array))


def test_non_image_files_are_refused_by_name(codec: glc.Codec, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    Image.fromarray(fixed_image(64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-500])
    for name in ("text", "empty", "folder", "cut", "missing"):
        with pytest.raises(glc.ImageError, match=rf"{name}\.png: "):
            codec.compress(tmp_path / f"{name}.png")


def test_empty_images_are_refused(codec: glc.Codec) -> None:
    for size in ((0, 5), (5, 0), (0, 0)):
        with pytest.raises(ValueError, match="pixels"):
            codec.compress(Image.new("RGB", size))


def test_sides_above_the_formats_limit_are_refused(codec: glc.Codec) -> None:
    with pytest.raises(glc.SizeLimitError, match=r"65537 x 1 pixels; .* at most 65536 x 65536"):
        codec.compress(Image.new("RGB", (65537, 1)))


def test_quality_and_target_are_checked(codec: glc.Codec) -> None:
    array = fixed_image(8, 8)
    for quality in (-0.1, 100.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"quality must lie in \[0, 100\]"):
            codec.compress(array, quality)
    for target in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="target_bpp must be positive"):
            codec.compress(array, target_bpp=target)
    with pytest.raises(ValueError, match="not both"):
        codec.compress(array, target_bpp=1, target_size=100)
    with pytest.raises(glc.TargetError, match="the target is 20 bytes; the smallest file has"):
        codec.compress(array, target_size=20)


def test_compress_batch_equals_compress(codec: glc.Codec) -> None:
    arrays = [fixed_image(height, width, seed) for seed, (height, width) in enumerate([(30, 40), (32, 33)])]
    files = codec.compress_batch(arrays, 80)
    for array, data in zip(arrays, files, strict=True):
        header, _ = unpack(data)
        assert (header.height, header.width) == array.shape[:2]
        assert codec.symbols(data) == codec.symbols(codec.compress(array, 80))
    images = codec.decompress_batch(files)
    assert [image.size for image in images] == [(40, 30), (33, 32)]
    with pytest.raises(ValueError, match="one size after padding"):
        codec.compress_batch([fixed_image(30, 40), fixed_image(30, 100)])
    assert codec.compress_batch([]) == []
    assert codec.decompress_batch([]) == []


def test_targets_have_an_upper_limit(codec: glc.Codec) -> None:
    with pytest.warns(glc.TargetWarning, match="quality 100 needs no more"):
        codec.compress(fixed_image(1, 1), target_bpp=4000)
    for target in (1e308, float("inf")):
        with pytest.raises(ValueError, match="at most 10,000"):
            codec.compress(fixed_image(1, 1), target_bpp=target)


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [((1, 64), 64, (64, 64)), ((65, 128), 64, (128, 128)), ((127, 129), 128, (128, 256))],
)
def test_padded_size_is_the_least_multiple(
    size: tuple[int, int], stride: int, expected: tuple[int, int]
) -> None:
    assert padded_size(*size, stride) == expected


def test_padding_repeats_the_edge_and_crop_inverts_it() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    padded = pad(x, 4)
    assert padded[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert torch.equal(crop(padded, 2, 3), x)
    assert pad(padded, 4).shape == padded.shape
