"""BD-rate: the figure, its sign on both kinds of metrics, and when there is none."""

import math

import pytest

from glc.evaluation.tables import bd_rate

RATES = (0.02, 0.03, 0.05, 0.08)
PSNR = (22.0, 23.0, 24.0, 25.0)
LPIPS = (0.30, 0.25, 0.20, 0.16)


def curve(values: tuple[float, ...], factor: float = 1.0) -> list[tuple[float, float]]:
    return [(factor * rate, value) for rate, value in zip(RATES, values, strict=True)]


@pytest.mark.parametrize(("name", "values"), [("psnr", PSNR), ("lpips", LPIPS)])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.2])
def test_the_same_quality_at_other_rates(name: str, values: tuple[float, ...], factor: float) -> None:
    found = bd_rate(curve(values), curve(values, factor), name)
    assert found.percent == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert not found.note


@pytest.mark.parametrize(("name", "sign"), [("psnr", 1), ("lpips", -1)])
def test_a_figure_by_hand(name: str, sign: int) -> None:
    """Straight lines of log rate over quality, so that the mean distance over the shared part is exact."""
    base = 1.0 if sign == 1 else 100.0
    anchor = [(10 ** (-2 + 0.1 * q), base + sign * q) for q in (0, 1, 2, 3)]
    # Log rate 0.1 below at quality 1 and equal at quality 3: 0.05 on average over what they share, [1, 3].
    test = [(10 ** (-2 + 0.1 * q - 0.05 * (3 - q)), base + sign * q) for q in (1, 2, 3, 4)]
    assert bd_rate(anchor, test, name).percent == pytest.approx(100 * (10**-0.05 - 1), rel=1e-6)


def test_better_quality_at_the_same_rate_is_a_saving() -> None:
    better = [(rate, value - 0.02) for rate, value in curve(LPIPS)]
    percent = bd_rate(curve(LPIPS), better, "lpips").percent
    assert percent is not None
    assert percent < -10
    worse = [(rate, value - 0.5) for rate, value in curve(PSNR)]
    percent = bd_rate(curve(PSNR), worse, "psnr").percent
    assert percent is not None
    assert percent > 10


def test_the_order_of_points_does_not_matter() -> None:
    test = [(rate, value + 0.3 * rate) for rate, value in curve(LPIPS, 0.7)]
    assert bd_rate(curve(LPIPS)[::-1], test[::-1], "lpips") == bd_rate(curve(LPIPS), test, "lpips")


@pytest.mark.parametrize(
    ("anchor", "test", "name", "words"),
    [
        (curve(PSNR)[:2], curve(PSNR), "psnr", "the anchor has fewer than 3 points"),
        (curve(PSNR), curve(PSNR)[:1], "psnr", "the codec has fewer than 3 points"),
        (curve(PSNR), [(r, v + 10) for r, v in curve(PSNR)], "psnr", "share no quality"),
        (curve(PSNR), [*curve(PSNR)[:3], (0.08, 23.9)], "psnr", "does not grow from 0.0500 to 0.0800"),
        (curve(PSNR), curve(PSNR), "zeal", "is not known"),
        (curve(PSNR), [*curve(PSNR)[:2], (0.05, math.inf)], "psnr", "fewer than 3 points"),
    ],
)
def test_no_figure_without_a_reason(
    anchor: list[tuple[float, float]], test: list[tuple[float, float]], name: str, words: str
) -> None:
    found = bd_rate(anchor, test, name)
    assert found.percent is None
    assert words in found.note


def test_caveats() -> None:
    few = bd_rate(curve(PSNR), curve(PSNR, 0.9)[:3], "psnr")
    assert few.percent == pytest.approx(-10, abs=0.5)
    assert few.note == "from 3 points"
    apart = bd_rate(curve(PSNR), [(rate, value + 2) for rate, value in curve(PSNR)], "psnr")
    assert apart.percent is not None
    assert apart.note == "over 20 % of the range of quality"


def test_rates_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        bd_rate([(0.0, 1.0), *curve(PSNR)], curve(PSNR), "psnr")
