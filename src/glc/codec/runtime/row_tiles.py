"""Compute maps in row tiles: a tile of rows at a time; group normalisation gathers its statistics meanwhile.

A row tile and its intermediate results fit the processor's cache, and only the input and the output exist as
complete maps. Zero padding applies at the ends of the map, not at the ends of a tile, so the result equals
that of the complete map.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.runtime import fused, winograd
from glc.codec.runtime.threads import BUFFERS, Workers
from glc.codec.runtime.winograd import CHANNEL_BLOCK, WINOGRAD_TILE
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
            if fused.suits(tile) and fused.available():
                _, channels, height, width = tile.shape
                out = BUFFERS.normalized.map(channels, height, width, tile.dtype)
                options = {"bias": self.norm.bias, "swish": self.swish}
                fused.run("glc_norm", tile, self.norm.weight, out, self.norm.eps, **options)
                return out
            out = self.norm(tile)
        else:
            out = tile.clone() if self.swish else tile
        return F.silu(out, inplace=True) if self.swish else out


TILE_ELEMENTS = 5 << 18
"""Approximate number of elements of a row tile's input or output."""


LEAST_ROWS = 12
"""Rows of a tile that is made smaller for the threads: the rows beside it are normalised twice."""


def tile_ranges(
    rows: int, elements_per_row: int, multiple: int = 1, parts: int = 1
) -> Iterator[tuple[int, int]]:
    """Yield first and last row (exclusive) of a map's row tiles; all heights but the last are multiples.

    Args:
        parts: number of tiles to make at least, if they get `LEAST_ROWS`.
    """
    height = max(1, TILE_ELEMENTS // max(1, elements_per_row * multiple)) * multiple
    height = min(height, max(-(-rows // parts), LEAST_ROWS))
    # Equal heights rather than a thin last tile.
    even = -(-rows // -(-rows // height))
    height = -(-even // multiple) * multiple
    for start in range(0, rows, height):
        yield start, min(rows, start + height)


def empty_map(channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return an uninitialised map `[1, C, H, W]` in channels-last memory."""
    return torch.empty((1, channels, height, width), dtype=dtype, memory_format=torch.channels_last)


class Source:
    """Rows of a map, zero-padded beyond its ends.

    Args:
        height: rows of the map.
        read: returns the rows `[1, C, rows, W]` from a first to a last one (exclusive), within the map.
    """

    def __init__(self, height: int, read: Callable[[int, int], Tensor]) -> None:
        self.height = height
        self.read = read

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the rows from start to stop (exclusive); rows outside of the map are zero."""
        inside = self.read(max(0, start), min(self.height, stop))
        above, below = max(0, -start), max(0, stop - self.height)
        return F.pad(inside, (0, 0, above, below)) if above or below else inside


Write = Callable[[int, Tensor, int, bool], None]
"""Writes rows of an output. Arguments: first row, target `[1, channels, rows, W]`, first channel, and whether
to add to the target."""


def fill(
    out: Tensor,
    write: Write,
    gather: bool,
    workers: Workers,
    *,
    multiple: int = WINOGRAD_TILE,
    add: bool = False,
    width: int = 0,
    divisible: bool = True,
) -> ChannelStatistics | None:
    """Write a map `[1, C, H, W]` in row tiles and return the statistics of its channels.

    Args:
        gather: whether to return statistics; None otherwise.
        multiple: of which a tile's height must be.
        width: elements of the input per row of the output, if more than the output's own.
        divisible: whether `write` can compute some channels without the others. If so, and there are few
            tiles, several threads share one.
    """
    channels = out.shape[1]
    # Fewer rows per tile for the threads: with a share of the channels, each computes the same input again.
    # But tiles change the rounding of statistics, which must not depend on the number of threads.
    elements = max(channels * out.shape[3], width)
    ranges = list(tile_ranges(out.shape[2], elements, multiple, 1 if gather else workers.count))
    # Two items per thread: their durations differ.
    split = workers.count > 1 and divisible and (gather or len(ranges) < workers.count)
    blocks = -(-2 * workers.count // len(ranges)) if split else 1
    size = -(-channels // (blocks * CHANNEL_BLOCK)) * CHANNEL_BLOCK

    def compute(item: tuple[int, int, int]) -> Moments | None:
        start, stop, channel = item
        tile = out[:, channel : channel + size, start:stop]
        write(start, tile, channel, add)
        return moments(tile) if gather else None

    items = [(*rows, channel) for rows in ranges for channel in range(0, channels, size)]
    results = workers.map(compute, items)
    if not gather:
        return None
    statistics = ChannelStatistics(channels)
    for (_, _, channel), of_tile in zip(items, results, strict=True):
        assert of_tile is not None
        statistics.add(slice(channel, channel + size), of_tile)
    return statistics
