"""Normalisation layers."""

import math

import torch
from torch import Tensor, nn


class PixelNorm(nn.Module):
    """Root-mean-square normalisation over the channels of each position, with a learned gain and bias.

    Unlike group normalisation it is local: the network keeps a finite receptive field, so an image can be
    processed in tiles and a crop gives the same result as the full image.

    Args:
        channels: C.
        eps: added to the mean square.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, C, H, W]`."""
        # The channel axis is contiguous in channels-last memory; rms_norm then needs no copy.
        y = nn.functional.rms_norm(x.permute(0, 2, 3, 1), x.shape[1:2], self.weight.to(x.dtype), self.eps)
        return (y + self.bias.to(x.dtype)).permute(0, 3, 1, 2)


def make_norm(kind: str, channels: int) -> nn.Module:
    """Return a normalisation over `[B, channels, H, W]`.

    Args:
        kind: `group` (32 groups as in VQGAN; fewer if 32 does not divide the channels),
            `pixel` (`PixelNorm`) or `none`.
        channels: C.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)
    if kind == "pixel":
        return PixelNorm(channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm must be group, pixel or none, got {kind!r}")
