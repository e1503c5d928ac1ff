"""Search for the rate index or quality whose file has a given size."""

import math
from collections.abc import Callable

from glc.errors import TargetError

TOLERANCE = 0.03
"""Largest relative distance of a size below its target."""
_AIM = 0.985
"""Share of the target at which interpolation aims."""
_MAX_PROBES = 24


def search(size_of: Callable[[int], int], top: int, target: float) -> int:
    """Return the setting in `[0, top]` whose size is at most `TOLERANCE` below `target`, else the nearest.

    Sizes nearly always grow with the setting. The search brackets the target between a setting that fits and
    one that does not, and interpolates the logarithm of the size between them; every third probe bisects.

    Args:
        size_of: size in bytes of the file at a setting; called once per setting.
        top: largest setting.
        target: bytes; may be fractional.

    Raises:
        TargetError: setting 0 does not fit.
    """
    smallest = size_of(0)
    if smallest > target:
        raise TargetError(f"the target is {int(target)} bytes; the smallest file has {smallest} bytes")
    low, low_size = 0, smallest
    if top == 0 or low_size >= (1 - TOLERANCE) * target:
        return low
    high, high_size = top, size_of(top)
    if high_size <= target:
        return high
    for probe in range(_MAX_PROBES):
        if high - low <= 1 or low_size >= (1 - TOLERANCE) * target:
            break
        middle = (low + high) // 2
        if probe % 3 < 2:  # every third probe bisects, so that an irregular curve cannot stall the search
            slope = (math.log(high_size) - math.log(low_size)) / (high - low)
            middle = low + round((math.log(_AIM * target) - math.log(low_size)) / slope)
        middle = min(max(middle, low + 1), high - 1)
        size = size_of(middle)
        if size <= target:
            low, low_size = middle, size
        else:
            high, high_size = middle, size
    return low
