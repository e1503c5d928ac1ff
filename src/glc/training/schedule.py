"""Learning-rate schedules: factors on the optimizer's rate as a function of the step."""

import math


class WarmupCosine:
    """Linear warm-up, a constant part, then cosine decay to a floor.

    Args:
        warmup: steps of warm-up; the first step has a rate above zero.
        total: the step at which the floor is reached.
        floor: the last factor, in [0, 1].
        hold: fraction of the steps after warm-up at the full rate, before the decay, in [0, 1].

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, warmup: int, total: int, floor: float = 0.0, hold: float = 0.0) -> None:
        if warmup < 0 or total < 1:
            raise ValueError(f"the schedule needs warmup >= 0 and total >= 1, got {warmup} and {total}")
        if not 0 <= floor <= 1 or not 0 <= hold <= 1:
            raise ValueError(f"floor and hold must lie in [0, 1], got {floor} and {hold}")
        self.warmup = warmup
        self.total = total
        self.floor = floor
        self.hold = hold

    def __call__(self, step: int) -> float:
        """Return the factor at a step, in (0, 1]."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        start = self.warmup + self.hold * (self.total - self.warmup)
        if step < start:
            return 1.0
        progress = min(1.0, (step - start) / max(1.0, self.total - start))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
