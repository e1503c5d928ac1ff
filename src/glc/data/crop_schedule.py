"""The side of the training crops: one for all steps, or drawn for each step from a schedule.

```yaml
crop:
  - {from_step: 0, sizes: {256: 1}}
  - {from_step: 100000, sizes: {256: 0.5, 512: 0.5}}
  - {from_step: 200000, sizes: {256: 0.25, 512: 0.25, 1024: 0.5}}
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class CropSchedule:
    """The sides of the crops of each step. All images of a step, on all ranks, have the same.

    Args:
        crop: a side in pixels, or phases: mappings of `from_step`, the first step of the phase, and `sizes`,
            the probability of each side (or positive numbers in the ratio of the probabilities).

    Attributes:
        sides: all sides, the smallest first.

    Raises:
        ValueError: another form, a side below 1, or phases that do not start at 0 and ascend.
    """

    def __init__(self, crop: int | Sequence[Mapping[str, Any]]) -> None:
        phases: Any = [{"from_step": 0, "sizes": {crop: 1}}] if isinstance(crop, int) else crop
        try:
            self._starts = [int(phase["from_step"]) for phase in phases]
            chances = [
                {int(side): float(chance) for side, chance in phase["sizes"].items()} for phase in phases
            ]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(
                f"data.crop: {crop} is not a schedule; give [{{from_step: 0, sizes: {{256: 1}}}}, ...]"
            ) from None
        if self._starts[:1] != [0] or self._starts != sorted(set(self._starts)):
            raise ValueError(
                f"data.crop: the phases start at the steps {self._starts}; the first must start at 0, each "
                "later one at a later step"
            )
        for sizes in chances:
            if not sizes or min(sizes.values()) <= 0 or not sum(sizes.values()) < float("inf"):
                raise ValueError(f"data.crop: probabilities {sizes}; give a positive number for each size")
        self.sides = sorted(set().union(*chances))
        if self.sides[0] < 1:
            raise ValueError(f"data.crop: is {self.sides[0]}, must be at least 1")
        self._phases = [(np.array(list(sizes)), _ends(list(sizes.values()))) for sizes in chances]

    def of_steps(self, seed: int, epoch: int, first: int, count: int) -> np.ndarray:
        """Return the side of each of the first `count` steps of an epoch, which begins with step `first`."""
        if len(self.sides) == 1:
            return np.full(count, self.sides[0])
        draws = np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(2,))).random(count)
        phase = np.searchsorted(self._starts, first + np.arange(count), side="right") - 1
        sides = np.empty(count, np.int64)
        for number, (sizes, ends) in enumerate(self._phases):
            here = phase == number
            sides[here] = sizes[np.searchsorted(ends, draws[here], side="right")]
        return sides


def _ends(chances: Sequence[float]) -> np.ndarray:
    """Return the upper ends of intervals of [0, 1) whose lengths are in the given ratio."""
    ends = np.cumsum(chances) / sum(chances)
    ends[-1] = 1.0
    return ends
