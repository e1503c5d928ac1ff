"""Statistics of group normalisation, gathered while a map is written, and their use."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.runtime import winograd
from glc.layers.normalization import PixelNorm


class Moments(NamedTuple):
    """What is known of the channels of a band."""

    values: int
    """Of each."""
    mean: Tensor
    """Float64 `[C]`."""
    variance: Tensor
    """Float64 `[C]`."""


def moments(band: Tensor) -> Moments:
    """Return the moments of a band `[1, C, rows, W]`."""
    unused = torch.zeros(band.shape[1])
    # Of all ways to get at both moments the one that is fast in channels-last memory.
    mean, variance = torch.batch_norm_update_stats(band, unused, unused, 0.0)
    return Moments(band.shape[2] * band.shape[3], mean.double(), variance.double())


class ChannelStatistics:
    """Mean and variance of each channel of a map `[1, C, H, W]`, added up band by band in float64."""

    def __init__(self, channels: int) -> None:
        self.count = torch.zeros(channels, dtype=torch.float64)
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, part: slice, band: Moments) -> None:
        """Take in a band's channels in `part`, where no other call saw them."""
        before = self.count[part]
        total = before + band.values
        shift = band.mean - self.mean[part]
        self.squares[part] += band.variance * band.values + shift.square() * (before * band.values / total)
        self.mean[part] += shift * (band.values / total)
        self.count[part] = total

    def of_groups(self, groups: int) -> tuple[Tensor, Tensor]:
        """Return mean and variance, float32 `[C]`, of the group that each channel lies in."""
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
    """A normalisation, and swish after it, of one map, to be applied band by band.

    Args:
        norm: one of those that `glc.layers.normalization.make_norm` makes.
        statistics: of the map's channels; only group normalisation looks at them.
        swish: whether it follows.
    """

    def __init__(self, norm: nn.Module, statistics: ChannelStatistics | None, swish: bool) -> None:
        self.norm = norm
        self.swish = swish
        if isinstance(norm, nn.GroupNorm):
            assert statistics is not None
            mean, variance = statistics.of_groups(norm.num_groups)
            self.scale = norm.weight * (variance + norm.eps).rsqrt()
            self.shift = norm.bias - mean * self.scale

    def __call__(self, band: Tensor) -> Tensor:
        """Map a band `[1, C, rows, W]` to one like it, which stays until this thread maps the next."""
        if isinstance(self.norm, nn.GroupNorm):
            scale, shift = self.scale, self.shift
            if winograd.normalizes(band) and (library := winograd.library()) is not None:
                return winograd.normalize(library, band, scale, shift, self.swish)
            # One pass, in float32 inside, over what is stored in half of that.
            zero, one = torch.zeros_like(scale), torch.ones_like(scale)
            out = torch.batch_norm(band, scale, shift, zero, one, False, 0.0, 0.0, False)
        elif isinstance(self.norm, PixelNorm):
            out = self.norm(band)
        else:
            out = band.clone() if self.swish else band
        return F.silu(out, inplace=True) if self.swish else out
