"""Training in pieces of limited length."""

import time
from typing import Any

import lightning as L

ASK_EVERY = 10
"""Steps after which several processes look at their clocks together: each time, all wait for each other."""


class TimeLimit(L.Callback):
    """Stop after a time, counted anew whenever a run is started or continued.

    Lightning's own `max_time` counts over all pieces of a run, so a continued run would stop at once. It ends
    after a step, never between its accumulated batches: a checkpoint keeps no gradients.

    Args:
        minutes: the limit; None for none.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self._start = 0.0
        self._step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where the training starts or goes on."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the training when the time is over; all devices stop together."""
        stepped = trainer.global_step != self._step
        self._step = trainer.global_step
        if self.minutes is None or not stepped:
            return
        if trainer.world_size > 1 and self._step % ASK_EVERY:
            return
        over = time.monotonic() - self._start > 60 * self.minutes
        if trainer.strategy.reduce_boolean_decision(over, all=False):
            trainer.should_stop = True
