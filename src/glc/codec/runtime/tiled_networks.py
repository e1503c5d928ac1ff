"""E and D on a CPU: in row tiles, with as few maps in memory as possible.

If all normalisations are local (`PixelNorm` or none), the high-resolution layers, beyond the attention
nearest to the pixels, run on row tiles with a halo of their receptive-field radius: tiling does not change
the result. Group normalisation needs the complete map: such a network holds two maps of its widest level.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.runtime.resources import check_memory
from glc.codec.runtime.row_tiles import TILE_ELEMENTS, Source, empty_map, fill, tile_ranges
from glc.codec.runtime.threads import Scratch, Workers
from glc.codec.runtime.tiled_layers import (
    Convolution,
    Map,
    TiledLayer,
    has_global_norm,
    make_tiled_layers,
    split_ending,
)
from glc.codec.runtime.winograd import WINOGRAD_TILE
from glc.errors import MemoryLimitError
from glc.layers.blocks import Upsample
from glc.models.autoencoder import Decoder, Encoder

_SHARED_TILES = 24
_TILES_PER_THREAD = 8
"""Memory besides maps, in row tiles of float32: the weights of a convolution, and each thread's tile and its
intermediate results."""
_MOST_PARTS = 8
"""Ranges of columns of D's tiles: narrower ones are mostly halo."""


def working_memory() -> int:
    """Return the bytes needed besides maps."""
    return (_SHARED_TILES + _TILES_PER_THREAD * torch.get_num_threads()) * TILE_ELEMENTS * 4


def _peak(
    layers: Sequence[TiledLayer], channels: int, height: float, width: float, dtype: torch.dtype
) -> int:
    """Return the peak bytes of maps of the layers, for an input of given channels, size and dtype."""
    scratch, peak, map_bytes = 0, 0, int(channels * height * width * dtype.itemsize)
    for layer in layers:
        size = layer.dtype.itemsize
        scratch = max(scratch, int(layer.scratch_channels * height * width * size))
        height, width = height * layer.scale, width * layer.scale
        output = int(layer.channels * height * width * size)
        peak = max(peak, map_bytes + scratch + (output if layer.makes_map else 0))
        map_bytes = output
    return max(peak, map_bytes + scratch)


def _tile_shape(
    need: int, size: tuple[int, int], halo: int, limit: int | None, name: str, most_parts: int = 1
) -> tuple[int, int]:
    """Return the rows and columns of a map's tiles, without the halo; the complete map needs `need` bytes.

    The map is divided into up to `most_parts` ranges of columns, so that least is computed twice.

    Raises:
        MemoryLimitError: a tile of one row does not fit.
    """
    (rows, columns), besides = size, working_memory()
    if limit is None or need + besides <= limit:
        return rows, columns
    fitting, least = [], need
    for parts in range(1, min(most_parts, columns) + 1):
        inside = -(-columns // parts)
        width = columns if parts == 1 else min(columns, inside + 2 * halo)
        row = need * width / (rows * columns)
        least = min(least, int(row * (2 * halo + 1)))
        height = min(rows, int((limit - besides) / row) - 2 * halo)
        if height >= 1:
            work = min(rows, height + 2 * halo) / height * width * parts
            fitting.append((work, height, inside))
    if not fitting:
        raise MemoryLimitError(
            f"{name} needs {(least + besides) / 1e9:.1f} GB for an image of this size, and "
            f"{max(0, limit) / 1e9:.1f} GB may be used; raise --memory (memory= in Python) or set "
            "--precision bfloat16, which halves it"
        )
    return min(fitting)[1:]


class TiledEncoder:
    """E in row tiles, from the rows of an image to its latent.

    Args:
        encoder: the network; its present weights are used.
        dtype: of the maps between its first and its last layer.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        blocks = list(encoder.blocks)
        self.stem = 1
        if isinstance(blocks[0], nn.PixelUnshuffle):
            self.stem = blocks[0].downscale_factor
            del blocks[0]
        first = blocks.pop(0)
        assert isinstance(first, nn.Conv2d)
        # In float32: bfloat16 cannot hold the 8 bits of a pixel.
        self.first = Convolution(first, torch.float32)
        self.dtype = dtype
        self.bounded = encoder.bounded
        self.gather = isinstance(getattr(blocks[0], "norm1", None), nn.GroupNorm)
        layers = make_tiled_layers(blocks, dtype)
        count = next(i for i, layer in enumerate([*layers, None]) if layer is None or layer.halo < 0)
        self.local, self.rest = layers[:count], layers[count:]
        self.factor = round(1 / math.prod(layer.scale for layer in self.local))
        # In rows of the local layers' output: those at a tile's ends that depend on its neighbour.
        self.halo = 1
        for layer in self.local:
            self.halo = math.ceil((self.halo + layer.halo) * layer.scale)

    def __call__(self, image: Source, width: int, limit: int | None = None) -> Tensor:
        """Return l `[1, C, H / f, W / f]`, float32.

        Args:
            image: rows `[1, 3, rows, W]` in [-1, 1].
            width: W.

        Raises:
            MemoryLimitError: when the limit is too low.
        """
        # Maps that fit one tile are computed as fast by one thread, and in two thirds of the processor time.
        widest = self.first.channels * (image.height // self.stem) * (width // self.stem)
        with Workers(alone=not self.gather and widest <= TILE_ELEMENTS) as workers:
            return self._encode(image, width, limit, workers)

    def _encode(self, image: Source, width: int, limit: int | None, workers: Workers) -> Tensor:
        scratch = Scratch()
        factor, stem = self.factor, self.stem
        height, width = image.height // stem, width // stem
        rows, columns = height // factor, width // factor
        channels = self.local[-1].channels if self.local else self.first.channels
        kept = _peak(self.rest, channels, rows, columns, self.dtype)
        need = max(kept, _peak(self.local, self.first.channels, height, width, self.dtype))
        if limit is not None and self.local:
            limit -= kept
        tile_rows, _ = _tile_shape(need, (rows, columns), self.halo, limit, "the encoder")
        if tile_rows == rows:
            x = self._encode_tile(image, 0, height, width, scratch, workers)
        else:
            x = Map(empty_map(channels, rows, columns, self.dtype))
            for start in range(0, rows, tile_rows):
                stop = min(rows, start + tile_rows)
                low, high = max(0, start - self.halo), min(rows, stop + self.halo)
                tile = self._encode_tile(image, low * factor, high * factor, width, scratch, workers)
                x.values[:, :, start:stop] = tile.values[:, :, start - low : stop - low]
            scratch = Scratch()
        for layer in self.rest:
            x = layer(x, scratch, workers)
        latent = x.values.float().contiguous()
        return latent.tanh() if self.bounded else latent

    def _encode_tile(
        self, image: Source, start: int, stop: int, width: int, scratch: Scratch, workers: Workers
    ) -> Map:
        """Return the local layers' output for some rows, counted after the stem."""
        stem = self.stem

        def read(low: int, high: int) -> Tensor:
            pixels = image.read((start + low) * stem, (start + high) * stem)
            return F.pixel_unshuffle(pixels, stem) if stem > 1 else pixels

        source = Source(stop - start, read)
        values = empty_map(self.first.channels, stop - start, width, self.dtype)
        x = Map(values, fill(values, self.first.writing(source, workers), self.gather, workers))
        for layer in self.local:
            x = layer(x, scratch, workers)
        return x


class TiledDecoder:
    """D in row tiles, from a latent to the rows of an image.

    The layers before the first upsampling always run in float32: they hold most of the weights but few of the
    multiplications, and their errors spread over the complete image.

    Args:
        decoder: the network; its present weights are used.
        dtype: of the maps from the first upsampling to the last layer.
    """

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        blocks = list(decoder.blocks)
        self.stem = 1
        if isinstance(blocks[-1], nn.PixelShuffle):
            self.stem = blocks[-1].upscale_factor
            del blocks[-1]
        last = blocks.pop()
        assert isinstance(last, nn.Conv2d)
        self.last = Convolution(last, torch.float32)
        blocks, self.ending = split_ending(blocks)
        low = next((i for i, block in enumerate(blocks) if isinstance(block, Upsample)), 0)
        layers = make_tiled_layers(blocks[:low], torch.float32) + make_tiled_layers(
            blocks[low:], dtype, self.ending
        )
        self.dtype = layers[0].dtype
        count = len(layers)
        if not has_global_norm(self.ending):
            while count and layers[count - 1].halo >= 0:
                count -= 1
        self.rest, self.local = layers[:count], layers[count:]
        self.factor = round(math.prod(layer.scale for layer in self.local))
        self.halo = 1
        for layer in reversed(self.local):
            self.halo = math.ceil(self.halo / layer.scale) + layer.halo

    def __call__(
        self,
        latent: Tensor,
        write: Callable[[int, int, Tensor], None],
        limit: int | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        """Decode l `[1, C, h, w]` to an image.

        Args:
            latent: float32.
            write: called with a row, a column and the part of the image from there on, `[1, 3, rows,
                columns]`, not clamped.
            release: called after weights that are not needed again.

        Raises:
            MemoryLimitError: when the limit is too low.
        """
        with Workers() as workers:
            self._decode(latent, write, limit, release, workers)

    def _decode(
        self,
        latent: Tensor,
        write: Callable[[int, int, Tensor], None],
        limit: int | None,
        release: Callable[[], None] | None,
        workers: Workers,
    ) -> None:
        channels, height, width = latent.shape[1:]
        kept = _peak(self.rest, channels, height, width, self.dtype)
        x = Map(latent.to(self.dtype, memory_format=torch.channels_last))
        scale = math.prod(layer.scale for layer in self.rest)
        rows, columns = round(height * scale), round(width * scale)
        middle, dtype = channels, self.dtype
        if self.rest:
            middle, dtype = self.rest[-1].channels, self.rest[-1].dtype
        need = max(kept, _peak(self.local, middle, rows, columns, dtype))
        if limit is not None and self.local:
            check_memory(kept + working_memory(), limit, "the decoder")
            limit -= middle * rows * columns * dtype.itemsize
        tile_rows, tile_columns = _tile_shape(
            need, (rows, columns), self.halo, limit, "the decoder", _MOST_PARTS
        )
        scratch = Scratch()
        for layer in self.rest:
            x = layer(x, scratch, workers)
            if release is not None and layer.scale > 1:
                release()  # most weights belong to the small maps
        scratch = Scratch()  # frees that of complete maps
        for top in range(0, rows, tile_rows):
            for left in range(0, columns, tile_columns):
                above, low, high = self._with_halo(top, tile_rows, rows)
                beside, first, last = self._with_halo(left, tile_columns, columns)
                tile = x
                if (tile_rows, tile_columns) != (rows, columns):
                    part = x.values[:, :, low:high, first:last]
                    tile = Map(part.clone(memory_format=torch.channels_last))
                for layer in self.local:
                    tile = layer(tile, scratch, workers)
                inside = above, min(tile_rows, rows - top), beside, min(tile_columns, columns - left)
                self._write_tile(tile, inside, (top, left), write, workers)

    def _with_halo(self, start: int, count: int, size: int) -> tuple[int, int, int]:
        """Return how much precedes `start` in a tile, and the tile's first and last index (exclusive)."""
        low = max(0, start - self.halo)
        return start - low, low, min(size, start + count + self.halo)

    def _write_tile(
        self,
        x: Map,
        inside: tuple[int, int, int, int],
        at: tuple[int, int],
        write: Callable[[int, int, Tensor], None],
        workers: Workers,
    ) -> None:
        """Write a tile without its halo: `inside` is its first row, rows, first column and columns."""
        convolve = self.last.writing(x.source(self.ending), workers)
        first, count, left, columns = (self.factor * size for size in inside)
        top, beside = (self.factor * self.stem * position for position in at)

        def write_rows(tile: tuple[int, int]) -> None:
            rows = empty_map(self.last.channels, tile[1] - tile[0], x.values.shape[3], torch.float32)
            convolve(first + tile[0], rows, 0, False)
            rows = rows[..., left : left + columns]
            if self.stem > 1:
                rows = F.pixel_shuffle(rows, self.stem)
            write(top + tile[0] * self.stem, beside, rows)

        workers.map(write_rows, tile_ranges(count, x.values.shape[1] * x.values.shape[3], WINOGRAD_TILE))
