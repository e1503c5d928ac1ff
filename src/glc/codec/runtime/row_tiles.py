"""Maps that are computed a band of rows at a time.

A band and what is computed from it stay in the processor's cache, and no map is held but the input and the
output. Zeros are set where the map ends, not where a band ends: the result is that of the whole map.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from glc.codec.runtime.group_norm import ChannelStatistics, Moments, moments
from glc.codec.runtime.threads import Workers
from glc.codec.runtime.winograd import PART, TILE

BAND_ELEMENTS = 5 << 18
"""Elements of a band's input or output, about."""


def bands(rows: int, elements_per_row: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Return first and last row (exclusive) of a map's bands, of a multiple of rows each but the last."""
    height = max(1, BAND_ELEMENTS // max(1, elements_per_row * multiple)) * multiple
    # Bands of one height rather than a thin last one.
    even = -(-rows // -(-rows // height))
    height = -(-even // multiple) * multiple
    for start in range(0, rows, height):
        yield start, min(rows, start + height)


def empty_map(channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return a map `[1, C, H, W]` in channels-last memory, its values not set."""
    return torch.empty((1, channels, height, width), dtype=dtype, memory_format=torch.channels_last)


class Source:
    """Rows of a map, with zeros beyond its ends.

    Args:
        height: rows of the map.
        read: from first and last row (exclusive) to `[1, C, rows, W]`, within the map.
    """

    def __init__(self, height: int, read: Callable[[int, int], Tensor]) -> None:
        self.height = height
        self.read = read

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows, which may lie outside of the map by some."""
        inside = self.read(max(0, start), min(self.height, stop))
        above, below = max(0, -start), max(0, stop - self.height)
        return F.pad(inside, (0, 0, above, below)) if above or below else inside


Write = Callable[[int, Tensor, int, bool], None]
"""Writes rows of an output: number of the first, where to (`[1, channels, rows, W]`), number of the first
channel, and whether to add to what is there."""


def fill(
    out: Tensor,
    write: Write,
    gather: bool,
    workers: Workers,
    *,
    multiple: int = TILE,
    add: bool = False,
    width: int = 0,
    divisible: bool = True,
) -> ChannelStatistics | None:
    """Write a map `[1, C, H, W]` band by band and return the statistics of its channels.

    Args:
        out: where to.
        write: writes some rows.
        gather: whether statistics are wanted.
        workers: who computes the bands.
        multiple: of which a band's height must be.
        add: to what is there already.
        width: elements of the input per row of the output, where they are more than those of the output.
        divisible: whether `write` can compute some channels without the others: where bands are few, workers
            share one.
    """
    channels = out.shape[1]
    cuts = list(bands(out.shape[2], max(channels * out.shape[3], width), multiple))
    # Two for each worker: they seldom end together.
    wanted = -(-2 * workers.count // len(cuts)) if workers.count > 1 and divisible else 1
    size = -(-channels // (wanted * PART)) * PART
    parts = range(0, channels, size)

    def compute(item: tuple[int, int, int]) -> Moments | None:
        start, stop, part = item
        band = out[:, part : part + size, start:stop]
        write(start, band, part, add)
        return moments(band) if gather else None

    items = [(*cut, part) for cut in cuts for part in parts]
    found = workers.map(compute, items)
    if not gather:
        return None
    statistics = ChannelStatistics(channels)
    for (_, _, part), of_band in zip(items, found, strict=True):
        assert of_band is not None
        statistics.add(slice(part, part + size), of_band)
    return statistics
