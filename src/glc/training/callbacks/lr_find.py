"""Learning-rate range test: train while the learning rate grows, and suggest one from the losses."""

import csv
import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from glc.errors import SettingError
from glc.io.atomic import replacing

log = logging.getLogger(__name__)


class RangeTest(L.Callback):
    """Raise the learning rate exponentially over the steps of a short run, instead of the stage's schedule.

    (Lightning's finder takes a single optimizer and needs the loss from `training_step`.) At the end, `path`
    has the learning rate and the loss of each step, and the log a suggestion. The run stops early when the
    loss is four times its minimum.
    The learning rates of the discriminator and of parameter groups keep their ratios.

    Args:
        path: CSV file to write.
        start: first learning rate of the networks.
        stop: last one, at `trainer.max_steps`.

    Raises:
        SettingError: the learning rates are out of order, or the run has no number of steps.
    """

    def __init__(self, path: str | Path, start: float = 1e-6, stop: float = 1e-1) -> None:
        if not 0 < start < stop:
            raise SettingError(f"callbacks.lr_find: needs 0 < start < stop, got start={start}, stop={stop}")
        self.path, self.start, self.stop = Path(path), start, stop
        self.rows: list[tuple[float, float]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the first learning rates."""
        if trainer.max_steps < 10:
            raise SettingError(f"trainer.max_steps={trainer.max_steps}: a range test needs 10 steps or more")
        self._initial = [
            [g["initial_lr"] for g in optimizer.param_groups] for optimizer in trainer.optimizers
        ]
        self._set_rates(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss, and set the learning rates of the next step, after the scheduler did."""
        loss = float(trainer.callback_metrics["train/loss"])
        self.rows.append((self._rate, loss))
        failed = not loss <= 4 * min(abs(value) for _, value in self.rows)
        if trainer.strategy.broadcast(failed):  # the first device decides for all
            trainer.should_stop = True
        self._set_rates(trainer)

    def _set_rates(self, trainer: L.Trainer) -> None:
        share = trainer.global_step / (trainer.max_steps - 1)
        self._rate = self.start * (self.stop / self.start) ** share
        for optimizer, initial in zip(trainer.optimizers, self._initial, strict=True):
            for group, rate in zip(optimizer.param_groups, initial, strict=True):
                group["lr"] = rate * self._rate / self._initial[0][0]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file and log the suggestion."""
        if not trainer.is_global_zero:
            return
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            csv.writer(file).writerows([("lr", "loss"), *self.rows])
        found = suggest([lr for lr, _ in self.rows], [loss for _, loss in self.rows])
        text = (
            "no suggestion: the loss never falls"
            if found is None
            else f"suggested stage.optimizer.lr={found:.2g}"
        )
        log.info("%s; losses by learning rate are in %s", text, self.path)


def suggest(rates: list[float], losses: list[float], smoothing: float = 0.8) -> float | None:
    """Return the learning rate at which the smoothed loss falls fastest; None if it never falls.

    Args:
        rates: increasing learning rates, equally spaced on a logarithmic scale.
        losses: of the step at each.
        smoothing: weight of the old value in the running mean, per step.
    """
    smoothed, mean = [], 0.0
    for i, loss in enumerate(losses):
        mean = smoothing * mean + (1 - smoothing) * loss
        smoothed.append(mean / (1 - smoothing ** (i + 1)))
    finite = [value for value in smoothed if math.isfinite(value)]
    if len(finite) < 3:
        return None
    # Beyond the minimum the loss rises; noise there is no reason to choose a large rate.
    end = max(3, int(np.argmin(finite)) + 1)
    slopes = np.gradient(finite[:end])
    best = int(np.argmin(slopes))
    return rates[best] if slopes[best] < 0 else None
