"""Training speed."""

import time
from typing import Any

import lightning as L

from glc.data.stream import images_of
from glc.errors import SettingError


class Throughput(L.Callback):
    """Log `train/images_per_second` over all devices, including the time spent waiting for data."""

    def __init__(self) -> None:
        self._images = 0
        self._since = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a run resumed within an epoch has no epoch start."""
        self._images, self._since = 0, time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; validation between epochs is not counted."""
        self._images, self._since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; log at the trainer's period, and after the first batch.

        Batches without images (of a custom module) are not counted, and nothing is logged.
        """
        try:
            self._images += len(images_of(batch)) * trainer.world_size
        except SettingError:
            return
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (batch_idx == 0 or (batch_idx + 1) % every == 0):
            now = time.perf_counter()
            pl_module.log("train/images_per_second", self._images / (now - self._since))
            self._images, self._since = 0, now
