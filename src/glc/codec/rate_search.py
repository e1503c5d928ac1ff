"""Search for the rate index or quality whose file has a given size."""

import math
from collections.abc import Callable

from glc.errors import TargetError

TOLERANCE = 0.03
"""Largest relative distance of a size below its target."""
_AIM = math.log(1 - TOLERANCE / 2)
"""Logarithm of the share of the target at which interpolation aims."""
_GROWTH, _BEND = 0.8, -0.27
"""Expected growth of the logarithm of the size from the middle, `_GROWTH * d + _BEND * d^2` with d from -1/2
(lowest setting) to 1/2: that of `small` on Kodak. Another curve costs probes, not accuracy."""
_LEAST_GROWTH = 0.1
"""Smallest slope of the logarithm of the size, over all settings, that is extrapolated."""
_MOST_PREDICTED = 6


def search(size_of: Callable[[int], int], top: int, target: float) -> int:
    """Return the setting in `[0, top]` whose size is at most `TOLERANCE` below `target`, else the nearest.

    Sizes nearly always grow with the setting. The first probe is the middle, the second follows the expected
    growth, the next ones the line through the two nearest logarithms of sizes. If two in a row do not halve
    the interval, the next one does, and so do all after `_MOST_PREDICTED`: no curve can stall the search.

    Args:
        size_of: size in bytes of the file at a setting; called once per setting.
        top: largest setting.
        target: bytes; may be fractional.

    Raises:
        TargetError: setting 0 does not fit, and no other one was found that does.
    """
    sizes: dict[int, int] = {}
    low, high = -1, top + 1  # the best setting known to fit, and the lowest known not to fit
    probe, slow = top // 2, 0
    while high - low > 1:
        before, size = high - low, size_of(probe)
        sizes[probe] = size
        if (1 - TOLERANCE) * target <= size <= target:
            return probe
        low, high = (low, probe) if size > target else (probe, high)
        slow = slow + 1 if 2 * (high - low) > before else 0
        probe = _predicted(sizes, top, math.log(max(target, 1)) + _AIM)
        if slow > 1 or len(sizes) >= _MOST_PREDICTED:
            probe, slow = 0 if low < 0 else top if high > top else (low + high) // 2, 0
        probe = min(max(probe, low + 1), high - 1)
    if low < 0:
        raise TargetError(f"the target is {int(target)} bytes; the smallest file has {sizes[0]} bytes")
    return low


def _predicted(sizes: dict[int, int], top: int, aim: float) -> int:
    """Return the setting at which the curve through the nearest sizes has a size of a given logarithm."""
    nearest = sorted((abs(math.log(size) - aim), setting, math.log(size)) for setting, size in sizes.items())
    _, first, here = nearest[0]
    if len(nearest) == 1:
        root = max(0.0, _GROWTH**2 + 4 * _BEND * (aim - here))
        return first + round(top * (math.sqrt(root) - _GROWTH) / (2 * _BEND))
    _, second, there = nearest[1]
    slope = max((there - here) / (second - first), _LEAST_GROWTH / max(1, top))
    return first + round((aim - here) / slope)
