"""Convolutions of row tiles, with prepared weights."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.runtime import winograd
from glc.codec.runtime.row_tiles import Source, Write, empty_map
from glc.codec.runtime.threads import Workers
from glc.codec.runtime.winograd import TransformedWeights


class Convolution:
    """A convolution, optionally after nearest-neighbour upsampling by two (`Upsample`).

    In float32, 3x3 convolutions use Winograd's algorithm if it is available. Otherwise upsampling is merged
    into the convolution: of the nine products of an output pixel, two or four share an input, so their
    weights are added beforehand. Four 2x2 convolutions of the small map remain, with 4 of 9 multiplications.

    Args:
        conv: 1x1, 3x3, or 3x3 of stride 2, padded at the right and lower edge only.
        dtype: of the maps.
        doubles: upsample the map by two first; 3x3 only.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, doubles: bool = False) -> None:
        self.dtype = dtype
        self.stride = conv.stride[0]
        self.radius = conv.kernel_size[0] // 2
        self.channels = conv.out_channels
        self.doubles = doubles
        self._conv = conv
        self._library = None
        if dtype == torch.float32 and winograd.suits(conv):
            self._library = winograd.library()
        if self._library is not None:
            return
        self._bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        if doubles:
            self._weights = [[self._cast(w) for w in pair] for pair in _merged(conv.weight.detach().float())]
        else:
            self._weight = self._cast(conv.weight.detach())

    def _cast(self, weight: Tensor) -> Tensor:
        return weight.to(dtype=self.dtype, memory_format=torch.channels_last)

    def writing(self, source: Source, workers: Workers) -> Write:
        """Return a function that writes output rows, valid until the workers' next convolution."""
        if self._library is None:
            return self._writing_directly(self._doubled if self.doubles else self._plain, source)
        weights = TransformedWeights(self._conv, self._library, workers, self.doubles)

        def write(start: int, out: Tensor, channel: int, add: bool) -> None:
            halves, stop = int(self.doubles), start + out.shape[2]
            low, high = max(0, (start - 1) >> halves), min(source.height, (stop >> halves) + 1)
            weights.convolve(source.read(low, high).float(), low, source.height, start, out, channel, add)

        return write

    def _writing_directly(self, rows: Callable[[Source, int, int, slice], Tensor], source: Source) -> Write:
        def write(start: int, out: Tensor, channel: int, add: bool) -> None:
            result = rows(source, start, start + out.shape[2], slice(channel, channel + out.shape[1]))
            if add:
                out.add_(result)
            else:
                out.copy_(result)

        return write

    def _plain(self, source: Source, start: int, stop: int, channels: slice) -> Tensor:
        weight, bias = self._weight[channels], None if self._bias is None else self._bias[channels]
        if self.stride == 2:
            tile = source.rows(2 * start, 2 * stop + 1).to(self.dtype)
            return F.conv2d(F.pad(tile, (0, 1)), weight, bias, stride=2)
        tile = source.rows(start - self.radius, stop + self.radius).to(self.dtype)
        return F.conv2d(tile, weight, bias, padding=(0, self.radius))

    def _doubled(self, source: Source, start: int, stop: int, channels: slice) -> Tensor:
        """Do what `_plain` does, after upsampling; start and stop are even."""
        bias = None if self._bias is None else self._bias[channels]
        tile = F.pad(source.rows(start // 2 - 1, stop // 2 + 1).to(self.dtype), (1, 1))
        height, width = (stop - start) // 2, tile.shape[3] - 2
        out = empty_map(len(range(*channels.indices(self.channels))), 2 * height, 2 * width, self.dtype)
        for p in range(2):
            for q in range(2):
                view = tile[:, :, p : p + height + 1, q : q + width + 1]
                out[:, :, p::2, q::2] = F.conv2d(view, self._weights[p][q][channels], bias)
        return out


def _merged(weight: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return 2x2 kernels, indexed by the parity of the output row, then of the output column."""
    # Kernel rows 0 and 1 + 2 apply to the input rows above and at an even output row; rows 0 + 1 and 2 to
    # those at and below an odd output row. Columns likewise.
    tall = [torch.stack((weight[:, :, 0], weight[:, :, 1] + weight[:, :, 2]), 2)]
    tall.append(torch.stack((weight[:, :, 0] + weight[:, :, 1], weight[:, :, 2]), 2))
    pairs = []
    for kernel in tall:
        left = torch.stack((kernel[..., 0], kernel[..., 1] + kernel[..., 2]), 3)
        right = torch.stack((kernel[..., 0] + kernel[..., 1], kernel[..., 2]), 3)
        pairs.append((left, right))
    return pairs
