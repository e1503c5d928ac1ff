"""Images that the codec accepts, pads and refuses. `tests/data/test_images.py` tests how files are read."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import glc
from glc.data.images import crop, pad, padded_size, to_input
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import Variants

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "I;16", "I", "F", "YCbCr", "HSV"]


def pixels(image: object) -> np.ndarray:
    """Return the levels `[H, W, 3]` that the codec's networks get."""
    return to_input(image)[0].permute(1, 2, 0).numpy()  # type: ignore[arg-type]


def in_mode(mode: str, array: np.ndarray) -> Image.Image:
    """Return an image of any mode; of the grey ones, the array's first channel."""
    grey = array[:, :, 0]
    wide = {
        "I;16": grey.astype(np.uint16) * 257,
        "I": grey.astype(np.int32) * 257,
        "F": grey / np.float32(255),
    }
    if mode in wide:
        return Image.fromarray(wide[mode])
    image = Image.fromarray(grey if mode in ("L", "P", "PA") else array)
    for step in {"PA": ("P", "PA"), "RGBa": ("RGBA", "RGBa")}.get(mode, (mode,)):
        image = image.convert(step)
    return image


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 47)])
def test_every_mode_is_read_as_rgb(mode: str, size: tuple[int, int]) -> None:
    array = fixed_image(*size)
    image = in_mode(mode, array)
    if mode in ("1", "LA", "CMYK", "YCbCr", "HSV"):
        expected = np.asarray(image.convert("RGB"))
    else:  # without loss
        grey = mode in ("L", "P", "PA", "I;16", "I", "F")
        expected = np.repeat(array[:, :, :1], 3, axis=2) if grey else array
    np.testing.assert_array_equal(pixels(image), expected)
    assert image.mode == mode, "the image given was changed"


def test_grey_lab_images_are_read() -> None:
    levels = np.array([[[0, 0, 0], [255, 0, 0]]], np.uint8)  # a and b are signed
    found = pixels(Image.frombytes("LAB", (2, 1), levels.tobytes()))
    assert np.abs(found - np.array([[[0] * 3, [255] * 3]])).max() <= 1


def test_alpha_of_arrays_is_composited_on_white() -> None:
    rgb, alpha = fixed_image(40, 40), np.triu(np.full((40, 40), 255, np.uint8), 1)
    expected = np.where(alpha[:, :, None] > 0, rgb, 255)
    np.testing.assert_array_equal(pixels(np.dstack([rgb, alpha])), expected)
    np.testing.assert_array_equal(pixels(np.dstack([rgb[:, :, 0], alpha]))[:, :, 2], expected[:, :, 0])


def test_paths_bytes_files_and_arrays_are_one_image(tmp_path: Path) -> None:
    array = fixed_image(41, 66)
    path = tmp_path / "an image.png"
    Image.fromarray(array).save(path)
    data = path.read_bytes()
    strided = np.repeat(array, 2, axis=1)[:, ::2]
    for source in (
        path,
        str(path),
        data,
        io.BytesIO(data),
        Image.open(path),
        np.asfortranarray(array),
        strided,
    ):
        np.testing.assert_array_equal(pixels(source), array)
    np.testing.assert_array_equal(pixels(array[:, :, 1]), np.repeat(array[:, :, 1:2], 3, axis=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_tensors_in_0_1_are_accepted(variants: Variants, dtype: torch.dtype) -> None:
    codec = variants.codec("categorical")
    # Black and white are the levels that have the same value in every type.
    array = np.where(fixed_image(40, 56) > 100, 255, 0).astype(np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1).to(dtype) / 255
    before = tensor.clone()
    assert codec.compress(tensor) == codec.compress(array)
    assert codec.compress(tensor.requires_grad_()) == codec.compress(array)
    assert torch.equal(tensor, before)


def test_every_level_is_the_same_in_arrays_and_float_tensors() -> None:
    array = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    x = to_input(torch.from_numpy(array).permute(2, 0, 1) / 255)
    np.testing.assert_allclose((x[0].permute(1, 2, 0) + 1) * 127.5, array, atol=1e-4)


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
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"an array must be uint8 \[H, W, 3\], got") as caught:
        to_input(array)
    assert str(list(array.shape)) in str(caught.value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(8, 8, 3),
        torch.zeros(4, 8, 8),
        torch.zeros(8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 0, 8),
        *(torch.full((3, 8, 8), value) for value in (1.01, -0.01, float("nan"), 255.0)),
    ],
)
def test_other_tensors_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"a tensor must (be floats \[3, H, W\]|hold pixels)"):
        to_input(tensor)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: "missing.png", glc.ImageError, r"missing\.png: "),
        (lambda: Image.fromarray(np.full((4, 4), 65536, np.int32)), glc.ImageError, r"outside 0\.\.65535"),
        (lambda: Image.fromarray(np.full((4, 4), np.nan, np.float32)), glc.ImageError, r"outside 0\.\.1"),
        (lambda: Image.new("RGB", (0, 5)), ValueError, "pixels"),
        (lambda: Image.new("RGB", (5, 0)), ValueError, "pixels"),
        (
            lambda: Image.new("RGB", (65537, 1)),
            glc.SizeLimitError,
            "65537 x 1 pixels; .* at most 65536 x 65536",
        ),
    ],
)
def test_compress_refuses_what_is_no_image_or_too_large(
    variants: Variants, make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        variants.codec("categorical").compress(make())  # type: ignore[arg-type]


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
