"""Conversion of images to the networks' input, and padding to the model's stride."""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from glc.data.images import ImageSource, read_rgb
from glc.models.glc import GLC

ImageLike = ImageSource | np.ndarray | Tensor
"""A path, a PIL image, an array `[H, W, 3]` of uint8, or a float tensor `[3, H, W]` in [0, 1]."""


class LatentOptimization(Protocol):
    """Optimises E's latent for one image, such as `glc.latent_optimization.LatentOptimizer`."""

    def __call__(
        self, model: GLC, x: Tensor, latent: Tensor, rate_index: float, memory: int | None
    ) -> Tensor:
        """Return a latent for x `[1, 3, H, W]` in [-1, 1] at a rate index, using at most `memory` bytes."""
        ...


def to_input(image: ImageLike) -> Tensor:
    """Return an image as `[1, 3, H, W]`, uint8 levels or float32 in [-1, 1].

    Raises:
        ImageError: a file cannot be read.
        ValueError: an array or a tensor has the wrong type, shape or range.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(
                f"a tensor must be floats [3, H, W] in [0, 1], got {image.dtype} {list(image.shape)}"
            )
        if 0 in image.shape or not (image.min() >= 0 and image.max() <= 1):
            raise ValueError("a tensor must hold pixels, with values in [0, 1]")
        return image.detach().float()[None] * 2 - 1
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
            raise ValueError(f"an array must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        shape = list(image.shape)
        try:
            image = Image.fromarray(image)
        except TypeError as error:
            raise ValueError(f"an array must be uint8 [H, W, 3], got {shape}") from error
    return torch.from_numpy(np.asarray(read_rgb(image)).transpose(2, 0, 1)[None].copy())


def padded_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Return an image's height and width rounded up to multiples of the stride."""
    return -(-height // stride) * stride, -(-width // stride) * stride


def pad(x: Tensor, stride: int) -> Tensor:
    """Extend images `[B, C, H, W]` at the right and lower edge, repeating the last pixels."""
    height, width = x.shape[-2:]
    rows, cols = padded_size(height, width, stride)
    return F.pad(x, (0, cols - width, 0, rows - height), mode="replicate")


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Undo `pad`."""
    return x[..., :height, :width]
