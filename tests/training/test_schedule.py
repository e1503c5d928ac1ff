import math

import pytest

from glc.training.schedule import WarmupCosine


def test_warmup_hold_and_decay() -> None:
    schedule = WarmupCosine(warmup=4, total=24, floor=0.1, hold=0.5)
    assert [schedule(step) for step in range(4)] == [0.2, 0.4, 0.6, 0.8]
    assert [schedule(step) for step in (4, 10, 13)] == [1, 1, 1]  # held for half of the other 20 steps
    assert schedule(14) == 1
    assert schedule(19) == pytest.approx(0.55)  # half way down to the floor
    assert schedule(16) == pytest.approx(0.1 + 0.9 * (1 + math.cos(0.2 * math.pi)) / 2)
    assert schedule(24) == schedule(1000) == pytest.approx(0.1)


def test_cosine_without_warmup_and_hold() -> None:
    schedule = WarmupCosine(warmup=0, total=10)
    assert [schedule(step) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


def test_full_hold_and_warmup_longer_than_the_run() -> None:
    held = WarmupCosine(warmup=2, total=10, hold=1.0, floor=0.5)
    assert held(9) == 1
    assert held(10) == 1  # the decay has no steps
    assert WarmupCosine(warmup=9, total=4)(3) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": -1}, "warmup >= 0"),
        ({"total": 0}, "total >= 1"),
        ({"floor": 1.1}, "floor and hold"),
        ({"floor": -0.1}, "floor and hold"),
        ({"hold": 2.0}, "floor and hold"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupCosine(**{"warmup": 1, "total": 10, **changes})
