"""Networks on maps that are too large to compute at once: in row tiles, one after the other."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from glc.codec.entropy.integer_nets import IntegerConv2d, IntegerDepthConv, IntegerFeedForward, IntegerLeakyReLU
from glc.layers.blocks import (
    DepthConv,
    DepthConvBlock,
    GatedDepthConv,
    GatedDepthConvBlock,
    GatedFeedForward,
    SubpixelUpsample,
)
from glc.models.transform import RateScaler, RateTransform

TILE_ELEMENTS = 1 << 23
"""Elements of the input maps of a row tile, or of its results where they have more: tens of megabytes."""

_KNOWN = (
    *(nn.Sequential, nn.ModuleList, nn.Identity, nn.LeakyReLU, nn.ReLU),
    *(DepthConv, DepthConvBlock, GatedDepthConv, GatedDepthConvBlock, GatedFeedForward, SubpixelUpsample),
    *(RateScaler, RateTransform),
    *(IntegerDepthConv, IntegerFeedForward, IntegerLeakyReLU),
)
"""Modules that see one position only, but for the convolutions in them."""


def halo(*networks: nn.Module) -> int | None:
    """Return how many rows above and below its own a row of the output depends on, in rows of the input.

    It may be more than the true number. None where it is not known of a module, such as a user's own: the
    network must see the whole map.

    Args:
        networks: run one after the other; their convolutions in the order in which they are registered.
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
        elif type(module) not in _KNOWN:
            return None
    return math.ceil(rows)


def in_row_tiles(
    compute: Callable[..., tuple[Tensor, ...]], maps: Sequence[Tensor], halo: int | None, scale: float = 1
) -> tuple[Tensor, ...]:
    """Return what `compute(*maps)` returns, for large maps from row tiles that overlap by the halo.

    Integer networks give the same numbers either way, others the same up to rounding.

    Args:
        compute: a function of maps with zeros around them, to maps of `scale` times their rows.
        maps: `[B, C, h, w]` each.
        halo: rows above and below a row that the result at it depends on; None: all, so that the maps are
            computed whole.
        scale: size of the results over that of the maps: a whole number or one over it.
    """
    height = maps[0].shape[2]
    step = max(1, round(1 / scale))
    per_row = sum(x[:, :, 0].numel() for x in maps) * max(1, scale) ** 2
    rows = max(1, int(TILE_ELEMENTS / max(1, per_row)) // step) * step
    if halo is None or rows + 2 * halo >= height:
        return compute(*maps)
    overlap = -(-halo // step) * step
    results: list[Tensor] = []
    for start in range(0, height, rows):
        stop = min(height, start + rows)
        low, high = max(0, start - overlap), min(height, stop + overlap)
        parts = compute(*(x[:, :, low:high] for x in maps))
        if not results:
            results = [
                part.new_empty(*part.shape[:2], round(height * scale), part.shape[3]) for part in parts
            ]
        first, last = round((start - low) * scale), round((stop - low) * scale)
        for result, part in zip(results, parts, strict=True):
            result[:, :, round(start * scale) : round(stop * scale)] = part[:, :, first:last]
    return tuple(results)
