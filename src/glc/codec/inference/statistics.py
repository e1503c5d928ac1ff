"""Statistics of group normalisation, gathered while a map is written, and their use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.layers.normalization import PixelNorm


class ChannelStatistics:
    """Mean and variance of each channel of a map `[1, C, H, W]`, added up band by band in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)
        self._unused = torch.zeros(channels)

    def add(self, band: Tensor) -> None:
        """Take in a band `[1, C, rows, W]` that no other call saw."""
        count = band.shape[2] * band.shape[3]
        # Of all ways to get at both moments the one that is fast in channels-last memory.
        mean, variance = torch.batch_norm_update_stats(band, self._unused, self._unused, 0.0)
        shift = mean.double() - self.mean
        total = self.count + count
        self.squares += variance.double() * count + shift.square() * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

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
        self.moments: tuple[Tensor, Tensor] | None = None
        if isinstance(norm, nn.GroupNorm):
            assert statistics is not None
            self.moments = statistics.of_groups(norm.num_groups)

    def __call__(self, band: Tensor) -> Tensor:
        """Map a band `[1, C, rows, W]` to a new tensor of its shape and type."""
        if isinstance(self.norm, nn.GroupNorm):
            assert self.moments is not None
            mean, variance = self.moments
            # One pass, in float32 inside, over what is stored in half of that.
            out = torch.batch_norm(
                band, self.norm.weight, self.norm.bias, mean, variance, False, 0.0, self.norm.eps, False
            )
        elif isinstance(self.norm, PixelNorm):
            out = self.norm(band)
        else:
            out = band.clone() if self.swish else band
        return F.silu(out, inplace=True) if self.swish else out
