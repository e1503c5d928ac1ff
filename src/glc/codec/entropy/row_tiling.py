"""Networks on a map that is too large to compute at once: some of its rows after the other."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from glc.codec.entropy.integer_nets import ExactConv2d

SLAB_ELEMENTS = 1 << 23
"""What a slab may have of its maps or, where they have more, of its results: tens of megabytes."""


def reach(*networks: nn.Module) -> int:
    """Return how many rows above and below its own a row of the output sees, in rows of the input; or more.

    Args:
        networks: convolutions in the order in which they are registered, one network after the other.
    """
    rows, scale = 0.0, 1.0
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, ExactConv2d):
            rows += module.radius / scale
        elif isinstance(module, nn.Conv2d):
            rows += (module.kernel_size[0] // 2) / scale
            scale /= module.stride[0]
        elif isinstance(module, nn.PixelShuffle):
            scale *= module.upscale_factor
    return math.ceil(rows)


def in_slabs(
    compute: Callable[..., tuple[Tensor, ...]],
    maps: Sequence[Tensor],
    reach: int,
    scale: float = 1,
) -> tuple[Tensor, ...]:
    """Return what `compute(*maps)` returns; for large maps from slabs of rows, which overlap by what is seen.

    Arithmetic that is exact gives the same numbers either way, any other the same up to rounding.

    Args:
        compute: a function of maps with zeros around them, to maps of `scale` times their rows.
        maps: `[B, C, h, w]` each.
        reach: rows above and below a row that the result at it depends on.
        scale: size of the results over that of the maps: a whole number or one over it.
    """
    height = maps[0].shape[2]
    step = max(1, round(1 / scale))
    per_row = sum(x[:, :, 0].numel() for x in maps) * max(1, scale) ** 2
    rows = max(1, int(SLAB_ELEMENTS / max(1, per_row)) // step) * step
    if rows + 2 * reach >= height:
        return compute(*maps)
    overlap = -(-reach // step) * step
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
