"""Training in pieces of limited length."""

import time
from typing import Any

import lightning as L


class TimeLimit(L.Callback):
    """Stop after a time, counted anew whenever a run is started or continued.

    Lightning's own `max_time` counts over all pieces of a run, so a continued run would stop at once.

    Args:
        minutes: the limit; None for none.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self._start = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the training when the time is over; all devices stop together."""
        if self.minutes is None:
            return
        over = time.monotonic() - self._start > 60 * self.minutes
        if trainer.strategy.reduce_boolean_decision(over, all=False):
            trainer.should_stop = True
