"""The convolutions and blocks of E and D as layers from map to map, each run in row tiles."""

import ctypes
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.runtime import amx, winograd
from glc.codec.runtime.row_tiles import ChannelStatistics, Normalizer, Source, Write, empty_map, fill
from glc.codec.runtime.threads import Scratch, Workers
from glc.codec.runtime.winograd import WINOGRAD_TILE
from glc.layers.blocks import (
    Downsample,
    PixelNorm,
    ResidualBlock,
    Upsample,
    WindowAttention,
    merge_windows,
    partition_windows,
)


class Convolution:
    """A convolution, optionally after nearest-neighbour upsampling by two (`Upsample`).

    In float32 it is computed with AMX, or by Winograd's algorithm, if they are available and suit it.
    Otherwise upsampling is merged into the convolution: of the nine products of an output pixel, two or four
    share an input, so their weights are added beforehand. Four 2x2 convolutions of the small map remain, with
    4 of 9 multiplications.

    Args:
        conv: 1x1, 3x3, or 3x3 of stride 2, padded at the right and lower edge only.
        doubles: upsample the map by two first; 3x3 only.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, doubles: bool = False) -> None:
        self.dtype = dtype
        self.stride = conv.stride[0]
        self.radius = conv.kernel_size[0] // 2
        self.channels = conv.out_channels
        self.doubles = doubles
        self._conv = conv
        self._kernel = _kernel_of(conv) if dtype == torch.float32 else None
        if self._kernel is not None:
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
        if self._kernel is None:
            return self._writing_directly(self._doubled if self.doubles else self._plain, source)
        make_weights, library = self._kernel
        weights = make_weights(self._conv, library, workers, self.doubles)
        halves, padding = int(self.doubles), self.radius if self.stride == 1 else 0

        def write(start: int, out: Tensor, channel: int, add: bool) -> None:
            first = start * self.stride - padding  # of the rows that the output depends on
            last = (start + out.shape[2] - 1) * self.stride + 2 * self.radius - padding
            low, high = max(0, first >> halves), min(source.height, (last >> halves) + 1)
            rows = source.read(low, high).float()
            # The kernel writes float32; a map in bfloat16 gets a copy.
            to = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
            weights.convolve(rows, low, source.height, start, to, channel, add and to is out)
            if to is not out:
                (out.add_ if add else out.copy_)(to)

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


def _kernel_of(
    conv: nn.Conv2d,
) -> tuple[type[winograd.PreparedWeights], ctypes.CDLL] | None:
    """Return how to prepare a convolution's weights for a compiled kernel; None if PyTorch computes it."""
    if amx.suits(conv) and (library := amx.library()) is not None:
        return amx.PackedWeights, library
    if winograd.suits(conv) and (library := winograd.library()) is not None:
        return winograd.TransformedWeights, library
    return None


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


_SWISH = nn.SiLU()
_BEFORE = (nn.GroupNorm, PixelNorm, nn.Identity, nn.SiLU)


class Map:
    """A map `[1, C, H, W]` with its channel statistics, if the next block needs them."""

    def __init__(self, values: Tensor, statistics: ChannelStatistics | None = None) -> None:
        self.values = values
        self.statistics = statistics

    def source(self, before: tuple[nn.Module, ...] = ()) -> Source:
        """Return the source of its rows, after the normalisation and swish in `before`, if any."""
        values = self.values
        if not before:
            return Source(values.shape[2], lambda start, stop: values[:, :, start:stop])
        swish = isinstance(before[-1], nn.SiLU)
        norm = before[0] if len(before) > swish else nn.Identity()
        normalize = Normalizer(norm, self.statistics, swish)
        return Source(values.shape[2], lambda start, stop: normalize(values[:, :, start:stop]))


class TiledLayer(Protocol):
    """A block with prepared weights."""

    gather: bool
    """Whether the next block needs statistics of the output."""
    channels: int
    """Width of the output."""
    dtype: torch.dtype
    """Of the output and of the intermediate map."""
    scale: float
    """Rows of the output per row of the input."""
    halo: int
    """Receptive-field radius in input rows; -1 if an output depends on the complete map."""
    makes_map: bool
    """Whether the output is a new map rather than the overwritten input."""
    scratch_channels: int
    """Channels of the intermediate map; 0 for none."""

    def __call__(self, x: Map, scratch: Scratch, workers: Workers) -> Map:
        """Apply the block; the input may be overwritten."""
        ...


class TiledResidualBlock:
    """`ResidualBlock`; overwrites its input if the width stays."""

    scale = 1.0

    def __init__(self, block: ResidualBlock, dtype: torch.dtype) -> None:
        self.gather = False
        self.block = block
        self.dtype = dtype
        self.conv1 = Convolution(block.conv1, dtype)
        self.conv2 = Convolution(block.conv2, dtype)
        self.skip = Convolution(block.skip, dtype) if isinstance(block.skip, nn.Conv2d) else None
        self.channels = self.scratch_channels = self.conv2.channels
        self.makes_map = self.skip is not None
        self.global_norm = isinstance(block.norm1, nn.GroupNorm)
        self.halo = -1 if self.global_norm else 2

    def __call__(self, x: Map, scratch: Scratch, workers: Workers) -> Map:
        """Apply the block."""
        _, channels, height, width = x.values.shape
        plain, source = x.source(), x.source((self.block.norm1, _SWISH))
        h = scratch.map(self.channels, height, width, self.conv1.dtype)
        wide = channels * width
        statistics = fill(h, self.conv1.writing(source, workers), self.global_norm, workers, width=wide)
        hidden = Map(h, statistics).source((self.block.norm2, _SWISH))
        write = self.conv2.writing(hidden, workers)
        if self.skip is None:
            return Map(x.values, fill(x.values, write, self.gather, workers, add=True))
        write_skip = self.skip.writing(plain, workers)

        def write_both(start: int, out: Tensor, channel: int, add: bool) -> None:
            write_skip(start, out, channel, add)
            write(start, out, channel, True)

        values = empty_map(self.channels, height, width, self.conv2.dtype)
        return Map(values, fill(values, write_both, self.gather, workers, width=wide))


class TiledAttention:
    """`WindowAttention`, a few rows of windows at a time; overwrites its input."""

    scale = 1.0
    halo = -1  # a complete window: too large a halo
    makes_map = False
    scratch_channels = 0

    def __init__(self, block: WindowAttention, dtype: torch.dtype) -> None:
        self.gather = False
        self.block = block
        self.dtype = dtype
        convs = (block.query, block.key, block.value)
        self.weight = torch.cat([conv.weight.detach().flatten(1) for conv in convs]).to(dtype)
        self.bias = torch.cat([conv.bias.detach() for conv in convs if conv.bias is not None]).to(dtype)
        self.out_weight = block.out.weight.detach().to(dtype)
        self.out_bias = None if block.out.bias is None else block.out.bias.detach().to(dtype)
        self.channels = block.out.out_channels

    def __call__(self, x: Map, scratch: Scratch, workers: Workers) -> Map:
        """Apply the block."""
        height, width = x.values.shape[2:]
        window = max(height, width) if self.block.window is None else self.block.window
        source = x.source((self.block.norm,))

        def write(start: int, out: Tensor, channel: int, add: bool) -> None:
            x = source.rows(start, start + out.shape[2])
            # Windows at the edges may be smaller. Computed separately, they need no mask.
            for top, bottom in _full_windows_and_rest(out.shape[2], window):
                for left, right in _full_windows_and_rest(width, window):
                    tokens, _ = partition_windows(x[:, :, top:bottom, left:right], window)
                    query, key, value = F.linear(tokens, self.weight, self.bias)[:, None].chunk(3, -1)
                    attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
                    merged = merge_windows(attended, window, (bottom - top, right - left))
                    out[:, :, top:bottom, left:right] += F.conv2d(merged, self.out_weight, self.out_bias)

        multiple = min(window, height)
        statistics = fill(x.values, write, self.gather, workers, multiple=multiple, add=True, divisible=False)
        return Map(x.values, statistics)


def _full_windows_and_rest(size: int, window: int) -> list[tuple[int, int]]:
    """Split a side into the range of full windows and the rest, without empty ranges."""
    full = size // window * window
    return [side for side in ((0, full), (full, size)) if side[0] < side[1]]


class TiledConvolution:
    """A convolution to a new map, with an optional normalisation and swish before it.

    It may include the `Upsample` before it or the `nn.PixelShuffle` after it.
    """

    makes_map = True
    scratch_channels = 0

    def __init__(
        self,
        conv: nn.Conv2d,
        dtype: torch.dtype,
        before: tuple[nn.Module, ...] = (),
        doubles: bool = False,
        shuffle: int = 1,
    ) -> None:
        self.gather = False
        self.before = before
        self.conv = Convolution(conv, dtype, doubles)
        self.channels = conv.out_channels // shuffle**2
        self.dtype = dtype
        self.shuffle = shuffle
        self.scale = (2.0 if doubles else 1 / conv.stride[0]) * shuffle
        self.halo = -1 if has_global_norm(before) else conv.kernel_size[0] // 2

    def __call__(self, x: Map, scratch: Scratch, workers: Workers) -> Map:
        """Apply the block."""
        _, channels, height, width = x.values.shape
        source = x.source(self.before)
        values = empty_map(self.channels, int(height * self.scale), int(width * self.scale), self.dtype)
        write = self.conv.writing(source, workers)

        def write_shuffled(start: int, out: Tensor, channel: int, add: bool) -> None:
            shape = (self.conv.channels, out.shape[2] // self.shuffle, out.shape[3] // self.shuffle)
            unshuffled = empty_map(*shape, self.dtype)
            write(start // self.shuffle, unshuffled, 0, False)
            out.copy_(F.pixel_shuffle(unshuffled, self.shuffle))

        direct = self.shuffle == 1
        statistics = fill(
            values,
            write if direct else write_shuffled,
            self.gather,
            workers,
            multiple=WINOGRAD_TILE * self.shuffle,
            width=int(channels * width / self.scale),
            divisible=direct,
        )
        return Map(values, statistics)


def has_global_norm(modules: tuple[nn.Module, ...]) -> bool:
    """Whether a module normalises over the complete map."""
    return any(isinstance(module, nn.GroupNorm) for module in modules)


def split_ending(blocks: list[nn.Module]) -> tuple[list[nn.Module], tuple[nn.Module, ...]]:
    """Split the normalisation and swish off the end of a list of blocks."""
    count = len(blocks)
    while count and isinstance(blocks[count - 1], _BEFORE):
        count -= 1
    return blocks[:count], tuple(blocks[count:])


def make_tiled_layers(
    blocks: list[nn.Module], dtype: torch.dtype, after: tuple[nn.Module, ...] = ()
) -> list[TiledLayer]:
    """Prepare blocks.

    Args:
        blocks: of E or D, between its first and its last convolution.
        after: normalisation and swish that follow.
    """
    layers: list[TiledLayer] = []
    before: tuple[nn.Module, ...] = ()
    sequence = (*blocks, *after)
    for block, following in zip(sequence, (*sequence[1:], None), strict=True):
        first = getattr(block, "norm1", getattr(block, "norm", block))
        if layers and not before:
            layers[-1].gather = isinstance(first, nn.GroupNorm)
        if isinstance(block, ResidualBlock):
            layers.append(TiledResidualBlock(block, dtype))
        elif isinstance(block, WindowAttention):
            layers.append(TiledAttention(block, dtype))
        elif isinstance(block, Downsample | Upsample):
            layers.append(TiledConvolution(block.conv, dtype, doubles=isinstance(block, Upsample)))
        elif isinstance(block, nn.Conv2d):
            shuffle = following.upscale_factor if isinstance(following, nn.PixelShuffle) else 1
            layers.append(TiledConvolution(block, dtype, before, shuffle=shuffle))
            before = ()
        elif isinstance(block, nn.PixelShuffle):
            continue  # part of the convolution before it
        else:
            assert isinstance(block, _BEFORE), block
            before = (*before, block)
    return layers
