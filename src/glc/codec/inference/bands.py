"""Convolutions of large maps, a band of rows at a time.

A band and what is computed from it stay in the processor's cache, and no map is held but the input and the
output. Zeros are set where the map ends, not where a band ends: the result is that of the whole map.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.inference.statistics import ChannelStatistics
from glc.codec.inference.winograd import WinogradConvolution

BAND_ELEMENTS = 1 << 20
"""Elements of a band's input or output, about."""
_WINOGRAD_CHANNELS = 96
"""Fewer channels make products too small to be worth the transforms."""


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


class Scratch:
    """Memory for a map that is used up before the next one is asked for.

    Fresh memory costs the system more time than a pass over it: it is asked for once.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def map(self, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return a map as `empty_map` does; it takes the place of the one before."""
        size = channels * height * width * dtype.itemsize
        if self._memory.numel() < size:
            self._memory = torch.empty(0, dtype=torch.uint8)  # give back before asking for more
            self._memory = torch.empty(size, dtype=torch.uint8)
        return self._memory[:size].view(dtype).view(1, height, width, channels).permute(0, 3, 1, 2)


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


class Convolution:
    """A convolution with its weights in the form in which it runs.

    Args:
        conv: 1x1, 3x3, or 3x3 of stride 2 that pads at the right and lower edge only.
        dtype: of the maps.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.stride = conv.stride[0]
        self.radius = conv.kernel_size[0] // 2
        self.channels = conv.out_channels
        self._winograd: WinogradConvolution | None = None
        if _suits_winograd(conv, dtype):
            self._winograd = WinogradConvolution(conv)
        else:
            self._weight = conv.weight.detach().to(dtype=dtype, memory_format=torch.channels_last)
            self._bias = None if conv.bias is None else conv.bias.detach().to(dtype)

    def rows(self, source: Source, start: int, stop: int) -> Tensor:
        """Return the output's rows `[1, out_channels, rows, W / stride]`."""
        if self.stride == 2:
            band = source.rows(2 * start, 2 * stop + 1).to(self.dtype)
            return F.conv2d(F.pad(band, (0, 1)), self._weight, self._bias, stride=2)
        band = source.rows(start - self.radius, stop + self.radius).to(self.dtype)
        if self._winograd is not None:
            return self._winograd(F.pad(band, (1, 1)))
        return F.conv2d(band, self._weight, self._bias, padding=(0, self.radius))


def _suits_winograd(conv: nn.Conv2d, dtype: torch.dtype) -> bool:
    return (
        dtype == torch.float32
        and conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and min(conv.in_channels, conv.out_channels) >= _WINOGRAD_CHANNELS
    )


class UpsamplingConvolution:
    """Doubling by repetition, then a 3x3 convolution.

    Direct: as four 2x2 convolutions of the small map. Of the nine products of an output pixel two or four
    meet the same input: their weights are added beforehand, which leaves 4 of 9 multiplications. Winograd's
    algorithm on the doubled band leaves fewer where it is used.

    Args:
        conv: the 3x3 convolution.
        dtype: of the maps.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.channels = conv.out_channels
        self._winograd: WinogradConvolution | None = None
        if _suits_winograd(conv, dtype):
            self._winograd = WinogradConvolution(conv)
            return
        weight = conv.weight.detach().float()
        # Rows 0 | 1 + 2 of the kernel meet the rows above and at an even output row's source; 0 + 1 | 2 those
        # at and below an odd one's. Columns likewise.
        tall = [torch.stack((weight[:, :, 0], weight[:, :, 1] + weight[:, :, 2]), 2)]
        tall.append(torch.stack((weight[:, :, 0] + weight[:, :, 1], weight[:, :, 2]), 2))
        self._weights = []
        for part in tall:
            left = torch.stack((part[..., 0], part[..., 1] + part[..., 2]), 3)
            right = torch.stack((part[..., 0] + part[..., 1], part[..., 2]), 3)
            pair = (left, right)
            self._weights.append([w.to(dtype=dtype, memory_format=torch.channels_last) for w in pair])
        self._bias = None if conv.bias is None else conv.bias.detach().to(dtype)

    def rows(self, source: Source, start: int, stop: int) -> Tensor:
        """Return the output's rows `[1, out_channels, rows, 2 W]`; start and stop are even."""
        band = F.pad(source.rows(start // 2 - 1, stop // 2 + 1).to(self.dtype), (1, 1))
        if self._winograd is not None:
            doubled = F.interpolate(band, scale_factor=2.0, mode="nearest")
            return self._winograd(doubled[:, :, 1:-1, 1:-1])
        height, width = (stop - start) // 2, band.shape[3] - 2
        out = empty_map(self.channels, 2 * height, 2 * width, self.dtype)
        for p in range(2):
            for q in range(2):
                view = band[:, :, p : p + height + 1, q : q + width + 1]
                out[:, :, p::2, q::2] = F.conv2d(view, self._weights[p][q], self._bias)
        return out


def fill(
    out: Tensor,
    rows: Callable[[int, int], Tensor],
    gather: bool,
    *,
    multiple: int = 1,
    add: bool = False,
    width: int = 0,
) -> ChannelStatistics | None:
    """Write a map `[1, C, H, W]` band by band and return the statistics of its channels.

    Args:
        out: where to.
        rows: returns the rows from one to another (exclusive).
        gather: whether statistics are wanted.
        multiple: of which a band's height must be.
        add: to what is there already.
        width: elements of the input per row of the output, where they are more than those of the output.
    """
    statistics = ChannelStatistics(out.shape[1]) if gather else None
    for start, stop in bands(out.shape[2], max(out.shape[1] * out.shape[3], width), multiple):
        band = out[:, :, start:stop]
        if add:
            band.add_(rows(start, stop))
        else:
            band.copy_(rows(start, stop))
        if statistics is not None:
            statistics.add(band)
    return statistics
