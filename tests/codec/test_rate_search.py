"""The rate search: its result and its number of probes."""

import math
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glc.codec.rate_search import search
from glc.errors import TargetError

TOP = 3 * 4096
MOST_PROBES = 26
Sizes = Callable[[int], int]

SMOOTH: dict[str, Sizes] = {
    "exponential": lambda s: round(800 * math.exp(2.5 * s / TOP)),
    "linear": lambda s: 300 + s,
    "steep": lambda s: round(40 * math.exp(7 * s / TOP)),
    "flat, then steep": lambda s: round(1000 + 9000 * (s / TOP) ** 12),
    "steep, then flat": lambda s: round(1000 + 9000 * (s / TOP) ** 0.1),
    "bent at each point": lambda s: (
        [1000, 1100, 4000, 4100][s // 4096] + [100, 2900, 100, 0][s // 4096] * (s % 4096) // 4096
    ),
    "rippled": lambda s: round(800 * math.exp(2.5 * s / TOP) * (1 + 0.01 * math.sin(s / 5))),
    "noisy": lambda s: round(3000 * math.exp(1.5 * s / TOP)) + s * 7919 % 41,
    "steps of 20 bytes": lambda s: 20 * round(50 * math.exp(2 * s / TOP)),
}


class Asked:
    """Counts the probes."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.times: Counter[int] = Counter()

    def __call__(self, setting: int) -> int:
        self.times[setting] += 1
        return self.sizes(setting)


def checked(sizes: Sizes, top: int, target: int) -> int:
    """Search, and check what holds of every search."""
    asked = Asked(sizes)
    found = search(asked, top, target)
    assert 0 <= found <= top
    assert asked.times[found] == 1
    assert max(asked.times.values()) == 1
    assert all(0 <= setting <= top for setting in asked.times)
    assert len(asked.times) <= MOST_PROBES
    assert sizes(found) <= target
    return found


@pytest.mark.parametrize("name", SMOOTH)
def test_lands_within_the_tolerance_below_the_target(name: str) -> None:
    sizes = SMOOTH[name]
    for share in (0.0, 0.01, 0.1, 0.3, 0.5, 0.8, 0.99, 1.0):
        target = round(sizes(0) + share * (sizes(TOP) - sizes(0)))
        found = checked(sizes, TOP, target)
        # Nothing lies closer where neighbouring sizes differ by more.
        if found < TOP and sizes(found + 1) <= 1.03 * sizes(found):
            assert 0.97 * target <= sizes(found)


def test_typical_curves_need_few_probes() -> None:
    # Halving alone takes 6 or more for most targets.
    for name, most in {"exponential": 3, "linear": 10, "rippled": 3, "noisy": 3}.items():
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            asked = Asked(SMOOTH[name])
            search(asked, TOP, round(SMOOTH[name](0) ** (1 - share) * SMOOTH[name](TOP) ** share))
            assert len(asked.times) <= most


def test_sizes_of_a_photograph_need_two_or_three_probes() -> None:
    # kodim05 with `small` at nine equally spaced settings.
    sizes = [1418, 1599, 1775, 1958, 2223, 2425, 2631, 2768, 2891]
    counts = []
    for target in range(1450, 2891, 60):
        asked = Asked(lambda s: round(float(np.interp(s, np.linspace(0, TOP, len(sizes)), sizes))))
        search(asked, TOP, target)
        counts.append(len(asked.times))
    assert max(counts) <= 3
    assert sum(counts) / len(counts) < 2.5


@pytest.mark.parametrize("jump", [1, 2, 100, 4096, TOP - 1, TOP])
def test_jump_across_the_target_returns_the_size_below(jump: int) -> None:
    found = checked(lambda s: 1000 if s < jump else 5000, TOP, 3000)
    assert found < jump


@pytest.mark.parametrize(
    ("sizes", "targets"),
    [
        ([100, 180, 300, 700], {100: 0, 179: 0, 180: 1, 250: 1, 299: 1, 300: 2, 699: 2, 700: 3, 9999: 3}),
        ([50], {50: 0, 5000: 0}),
    ],
)
def test_small_ranges_are_searched_exhaustively(sizes: list[int], targets: dict[int, int]) -> None:
    for target, expected in targets.items():
        assert checked(sizes.__getitem__, len(sizes) - 1, target) == expected


# Setting 0 has 300 bytes, and the tolerance is 3 %.
@pytest.mark.parametrize(
    ("target", "setting"), [(300, 0), (309, 0), *((300 + TOP + more, TOP) for more in (0, 1, 10**9))]
)
def test_first_and_last_setting_are_returned_if_they_fit(target: int, setting: int) -> None:
    assert checked(SMOOTH["linear"], TOP, target) == setting


def test_target_below_the_smallest_size_raises_with_that_size() -> None:
    asked = Asked(SMOOTH["linear"])
    with pytest.raises(TargetError, match=r"299 bytes; the smallest file has 300 bytes"):
        search(asked, TOP, 299)
    assert asked.times.keys() == {0, TOP // 2}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(18, 10**6), min_size=1, max_size=300),
    st.integers(1, 1100000),
    st.booleans(),
)
def test_arbitrary_size_functions(sizes: list[int], target: int, ascending: bool) -> None:
    if ascending:
        sizes = sorted(sizes)
    if min(sizes) > target or (ascending and sizes[0] > target):
        with pytest.raises(TargetError):
            search(sizes.__getitem__, len(sizes) - 1, target)
        return
    if sizes[0] > target:  # where sizes fall with the setting, a larger setting may be found
        with suppress(TargetError):
            checked(sizes.__getitem__, len(sizes) - 1, target)
        return
    found = checked(sizes.__getitem__, len(sizes) - 1, target)
    if ascending and sizes[found] < 0.97 * target and found < len(sizes) - 1:
        assert sizes[found + 1] > target


def test_a_target_of_no_bytes_is_refused() -> None:
    with pytest.raises(TargetError, match="the target is 0 bytes; the smallest file has 10 bytes"):
        search(lambda setting: 10 + setting, 94, 0)
