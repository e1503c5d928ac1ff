"""Run networks on large maps in row tiles with a halo, to bound their memory."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from glc.codec.entropy.integer_nets import (
    IntegerConv2d,
    IntegerDepthConv,
    IntegerFeedForward,
    IntegerLeakyReLU,
)
from glc.layers.blocks import (
    DepthConv,
    DepthConvBlock,
    GatedDepthConv,
    GatedDepthConvBlock,
    GatedFeedForward,
    SubpixelUpsample,
)
from glc.models.gate import QuantizationGate
from glc.models.transform import RateScaler, RateTransform

TILE_ELEMENTS = 1 << 23
"""Maximum elements of a row tile's inputs, or of its results if they are larger: tens of megabytes."""

_LOCAL = (
    *(nn.Sequential, nn.ModuleList, nn.Identity, nn.LeakyReLU, nn.ReLU),
    *(DepthConv, DepthConvBlock, GatedDepthConv, GatedDepthConvBlock, GatedFeedForward, SubpixelUpsample),
    *(RateScaler, RateTransform, QuantizationGate),
    *(IntegerDepthConv, IntegerFeedForward, IntegerLeakyReLU),
)
"""Modules that are local, apart from the convolutions in them."""


def halo(*networks: nn.Module) -> int | None:
    """Return the receptive-field radius of networks, in rows of the input.

    It is an upper bound. None if a module is not known, such as a user's own: the network must run on the
    complete map.

    Args:
        networks: run in sequence, their convolutions in the order of registration.
    """
    rows, scale = 0.0, 1.0
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, IntegerConv2d):
            rows += module.radius / scale
        elif type(module) is nn.Conv2d and module.dilation == (1, 1):
            rows += (module.kernel_size[0] // 2) / scale
            scale /= module.stride[0]
        elif type(module) is nn.PixelShuffle:
            scale *= module.upscale_factor
        elif type(module) not in _LOCAL:
            return None
    return math.ceil(rows)


def in_row_tiles(
    compute: Callable[..., tuple[Tensor, ...]],
    maps: Sequence[Tensor],
    halo: int | None,
    scale: float = 1,
    most: int | None = None,
) -> tuple[Tensor, ...]:
    """Return `compute(*maps)`, computed in row tiles that overlap by the halo if the maps are large.

    Integer networks give the same integers either way, others the same values up to rounding.

    Args:
        compute: maps zero-padded maps to maps of `scale` times their rows.
        maps: `[B, C, h, w]` each.
        halo: receptive-field radius in rows; None if a result depends on all rows: do not tile.
        scale: rows of the results over rows of the maps: an integer or its inverse.
        most: elements of a tile, by default `TILE_ELEMENTS`.
    """
    height = maps[0].shape[2]
    step = max(1, round(1 / scale))
    per_row = sum(x[:, :, 0].numel() for x in maps) * max(1, scale) ** 2
    rows = max(1, int((most or TILE_ELEMENTS) / max(1, per_row)) // step) * step
    if halo is None or rows + 2 * halo >= height:
        return compute(*maps)
    overlap = -(-halo // step) * step
    results: list[Tensor] = []
    for start in range(0, height, rows):
        stop = min(height, start + rows)
        low, high = max(0, start - overlap), min(height, stop + overlap)
        tiles = compute(*(x[:, :, low:high] for x in maps))
        if not results:
            results = [
                tile.new_empty(*tile.shape[:2], round(height * scale), tile.shape[3]) for tile in tiles
            ]
        first, last = round((start - low) * scale), round((stop - low) * scale)
        for result, tile in zip(results, tiles, strict=True):
            result[:, :, round(start * scale) : round(stop * scale)] = tile[:, :, first:last]
    return tuple(results)
