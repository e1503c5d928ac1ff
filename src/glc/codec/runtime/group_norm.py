"""Group normalisation in row tiles, with statistics that are gathered while the map is written."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.runtime import winograd
from glc.layers.blocks import PixelNorm


class Moments(NamedTuple):
    """Moments of the channels of a row tile."""

    values: int
    """Number of values per channel."""
    mean: Tensor
    """Float64 `[C]`."""
    variance: Tensor
    """Float64 `[C]`."""


def moments(tile: Tensor) -> Moments:
    """Return the moments of a row tile `[1, C, rows, W]`."""
    unused = torch.zeros(tile.shape[1])
    # The fastest operation that returns both moments in channels-last memory.
    mean, variance = torch.batch_norm_update_stats(tile, unused, unused, 0.0)
    return Moments(tile.shape[2] * tile.shape[3], mean.double(), variance.double())


class ChannelStatistics:
    """Mean and variance of each channel of a map `[1, C, H, W]`, accumulated over row tiles in float64."""

    def __init__(self, channels: int) -> None:
        self.count = torch.zeros(channels, dtype=torch.float64)
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, channels: slice, tile: Moments) -> None:
        """Add the moments of a tile that covers the given channels."""
        before = self.count[channels]
        total = before + tile.values
        shift = tile.mean - self.mean[channels]
        self.squares[channels] += tile.variance * tile.values + shift.square() * (
            before * tile.values / total
        )
        self.mean[channels] += shift * (tile.values / total)
        self.count[channels] = total

    def of_groups(self, groups: int) -> tuple[Tensor, Tensor]:
        """Return mean and variance, float32 `[C]`, of each channel's group."""
        size = self.mean.numel() // groups
        means = self.mean.view(groups, size)
        variances = (self.squares / self.count).view(groups, size)
        mean = means.mean(1, keepdim=True)
        variance = (variances + (means - mean).square()).mean(1, keepdim=True)
        return (
            mean.expand(groups, size).reshape(-1).float(),
            variance.expand(groups, size).reshape(-1).float(),
        )


class Normalizer:
    """The normalisation of one map, optionally followed by swish, applied to row tiles.

    Args:
        norm: a result of `glc.layers.blocks.make_norm`, or an identity.
        statistics: of the map's channels; only group normalisation uses them.
        swish: apply swish after it.
    """

    def __init__(self, norm: nn.Module, statistics: ChannelStatistics | None, swish: bool) -> None:
        self.norm = norm
        self.swish = swish
        if isinstance(norm, nn.GroupNorm):
            assert statistics is not None
            mean, variance = statistics.of_groups(norm.num_groups)
            self.scale = norm.weight * (variance + norm.eps).rsqrt()
            self.shift = norm.bias - mean * self.scale

    def __call__(self, tile: Tensor) -> Tensor:
        """Return a normalised tile `[1, C, rows, W]`, valid until this thread's next call."""
        if isinstance(self.norm, nn.GroupNorm):
            scale, shift = self.scale, self.shift
            if winograd.normalizes(tile) and (library := winograd.library()) is not None:
                return winograd.normalize(library, tile, scale, shift, self.swish)
            # One pass over bfloat16 values, computed in float32.
            zero, one = torch.zeros_like(scale), torch.ones_like(scale)
            out = torch.batch_norm(tile, scale, shift, zero, one, False, 0.0, 0.0, False)
        elif isinstance(self.norm, PixelNorm):
            out = self.norm(tile)
        else:
            out = tile.clone() if self.swish else tile
        return F.silu(out, inplace=True) if self.swish else out
