"""Masks: maps of an image's size that say how much each pixel matters."""

import os

import numpy as np
from PIL import Image

from glc.data.images import ImageSource, describe, read_rgb
from glc.errors import ImageError


def read_mask(mask: ImageSource | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask as float32 `[H, W]` in [0, 1]: 1 where it is white, 0 where it is black.

    Args:
        mask: an image, read as in `glc.data.images` and converted to grey, or an array `[H, W]`: bool, uint8
            levels, or floats in [0, 1].
        size: height and width of the image.

    Raises:
        ImageError: it cannot be read, has another size or values out of range, or is black everywhere.
    """
    name, given = "the mask", mask
    if not isinstance(mask, np.ndarray):
        name = f"{describe(mask)} (mask)" if isinstance(mask, str | os.PathLike) else name
        given = np.asarray(read_rgb(mask, name).convert("L"))
    assert isinstance(given, np.ndarray)
    if given.shape != size:
        shape = f"{given.shape[1]} x {given.shape[0]}" if given.ndim == 2 else f"an array {list(given.shape)}"
        raise ImageError(f"{name}: {shape} pixels, the image {size[1]} x {size[0]}; make it of that size")
    values = given.astype(np.float32) / np.float32(255 if given.dtype == np.uint8 else 1)
    if not 0 <= float(values.min()) <= float(values.max()) <= 1:  # also false for NaN
        raise ImageError(f"{name}: values must lie in [0, 1] (floats) or be levels (uint8)")
    if not values.any():
        raise ImageError(f"{name}: black everywhere; make white what matters")
    return values


def block_means(mask: np.ndarray, stride: int, side: int) -> np.ndarray:
    """Return the means of blocks of a mask `[H, W]`, padded at its edges to multiples of a stride.

    Args:
        stride: of which the padded sides are multiples; a multiple of `side`.
        side: of the blocks, in pixels.
    """
    below, right = (-length % stride for length in mask.shape)
    padded = np.pad(mask, ((0, below), (0, right)), mode="edge")
    rows, columns = (length // side for length in padded.shape)
    means: np.ndarray = padded.reshape(rows, side, columns, side).mean((1, 3))
    return means


def to_grey(values: np.ndarray) -> Image.Image:
    """Return values `[H, W]` as a grey image of 8 bits, rounded; values outside of 0 to 255 are clipped."""
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))
