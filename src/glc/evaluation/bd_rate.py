"""Bjontegaard's delta rate for any metric: how much rate one codec saves over another at equal quality."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bjontegaard import bd_rate as bjontegaard_bd_rate

from glc.evaluation.results import metric

METHOD = "pchip"
"""Interpolation of log rate over quality: piecewise cubic, monotone, as standardisation bodies use it."""
FEWEST_POINTS = 3
"""With two points the curve is a guess."""
USUAL_POINTS = 4
WELL_SHARED = 0.5
"""Share of the joint range of quality below which a figure gets a note."""

Curve = Sequence[tuple[float, float]]
"""Pairs of rate in bpp and a metric's value."""


@dataclass(frozen=True)
class BDRate:
    """A delta rate, or why there is none."""

    percent: float | None
    """Mean difference of rate at equal quality; negative: the tested codec needs fewer bits."""
    note: str = ""
    """Why there is no figure, or what to keep in mind about it."""


def bd_rate(anchor: Curve, test: Curve, name: str) -> BDRate:
    """Return the delta rate of a codec against an anchor by a metric.

    Quality runs along the axis of integration. A metric where lower is better is negated first, so that on
    both kinds more rate is more quality and a negative figure means fewer bits.

    Args:
        anchor: points of the codec to compare with, at least three.
        test: points of the codec that is judged, at least three.
        name: the metric's key.
    """
    higher = metric(name).higher_is_better
    if higher is None:
        return BDRate(None, f"whether more of {name} is better is not known")
    sign = 1 if higher else -1
    curves = []
    for who, curve in (("anchor", anchor), ("codec", test)):
        # Infinite PSNR is what lossless coding gives.
        points = sorted(
            (rate, sign * value) for rate, value in curve if math.isfinite(rate) and math.isfinite(value)
        )
        if any(rate <= 0 for rate, _ in points):
            raise ValueError("rates must be positive")
        if len(points) < FEWEST_POINTS:
            return BDRate(None, f"the {who} has fewer than {FEWEST_POINTS} points")
        for (rate, quality), (next_rate, next_quality) in pairwise(points):
            if next_rate == rate or next_quality <= quality:
                return BDRate(
                    None, f"the {who}'s quality does not grow from {rate:.4f} to {next_rate:.4f} bpp"
                )
        curves.append(points)
    low = max(curve[0][1] for curve in curves)
    high = min(curve[-1][1] for curve in curves)
    if low >= high:
        return BDRate(None, "the curves share no quality")
    whole = max(curve[-1][1] for curve in curves) - min(curve[0][1] for curve in curves)
    notes = []
    if min(len(curve) for curve in curves) < USUAL_POINTS:
        notes.append(f"from {min(len(curve) for curve in curves)} points")
    if (high - low) / whole < WELL_SHARED:
        notes.append(f"over {100 * (high - low) / whole:.0f} % of the range of quality")
    (anchor_rates, anchor_quality), (test_rates, test_quality) = (
        zip(*curve, strict=True) for curve in curves
    )
    percent = bjontegaard_bd_rate(
        list(anchor_rates),
        list(anchor_quality),
        list(test_rates),
        list(test_quality),
        method=METHOD,
        require_matching_points=False,
        min_overlap=0,
    )
    return BDRate(float(percent), ", ".join(notes))
