"""The checkpoint that a run continues from."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from glc.training.saving import LAST, keep_previous


class DivergedError(RuntimeError):
    """The loss or the gradients are no longer finite; the message says what can be done."""


class LastCheckpoint(Checkpoint):
    """Keep `last.ckpt` up to date: every so many steps, and at the end of each epoch and of the training.

    `resume=last` and the next stage start from it; `previous.ckpt` is the one before. As a `Checkpoint` it
    runs after all other callbacks, so it holds the moving average of the very step; and it saves when the
    last epoch ends rather than when training has ended, because by then the live weights have been replaced
    by the average.

    Args:
        dirpath: folder of the checkpoint.
        every_n_steps: period within an epoch.

    Raises:
        DivergedError: instead of replacing a good checkpoint by one of a training that diverged.
    """

    def __init__(self, dirpath: str | Path, every_n_steps: int = 1000) -> None:
        self.path = Path(dirpath) / LAST
        self.every_n_steps = every_n_steps
        self._saved_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where a run goes on: between two batches of one step there is nothing to save."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the period."""
        step = trainer.global_step
        if step > 0 and step % self.every_n_steps == 0 and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save at the end of an epoch, which the end of training is too."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step != self._saved_step:
            for name in ("train/loss", "train/grad_norm"):
                value = trainer.callback_metrics.get(name)
                if value is not None and not value.isfinite():
                    raise DivergedError(
                        f"training diverged: {name} is {float(value)} at step {trainer.global_step}; "
                        f"{self.path} is left as it was: continue from it with a smaller stage.optimizer.lr "
                        "or stage.clip"
                    )
            self._saved_step = trainer.global_step
            if trainer.is_global_zero:
                keep_previous(self.path)
            trainer.save_checkpoint(self.path, weights_only=False)
