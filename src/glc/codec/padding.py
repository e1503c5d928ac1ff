"""Padding: the only place where pictures of any size meet the model's stride."""

import torch.nn.functional as F
from torch import Tensor


def padded_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Return the least multiples of the stride that hold a picture."""
    return -(-height // stride) * stride, -(-width // stride) * stride


def pad(x: Tensor, stride: int) -> Tensor:
    """Extend pictures `[B, C, H, W]` at the right and lower edge, repeating the last pixels."""
    height, width = x.shape[-2:]
    rows, cols = padded_size(height, width, stride)
    return F.pad(x, (0, cols - width, 0, rows - height), mode="replicate")


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Undo `pad`."""
    return x[..., :height, :width]
