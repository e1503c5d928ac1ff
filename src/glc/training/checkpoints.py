"""Checkpoints of a run: saving, which one a run resumes from, and the counters that resuming upsets.

Lightning resumes a checkpoint that was saved at the end of an epoch by ending that epoch a second time,
without a batch (2.6). Two counters take that for an epoch and a batch of their own: the data would skip an
epoch, and each logged step would be one too high. `count_batches` and `count_epochs` correct them.
"""

import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import callbacks
from lightning.pytorch.loops.progress import _ProcessedTracker

from glc.errors import WeightsError
from glc.io.checkpoint import Checkpoint, copy_to_memory, label, open_checkpoint, save_checkpoint

log = logging.getLogger(__name__)

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
"""The checkpoint before the last, for when the last is damaged."""
_DAMAGED = ".damaged"


class SavingError(RuntimeError):
    """A checkpoint could not be written; the message says what is left and what to do."""


class SealedCheckpointIO(TorchCheckpointIO):
    """Saves atomically and with a checksum (`glc.io.checkpoint`); does not read again what is already open.

    Set `opened` to the checkpoint that `trainer.fit(ckpt_path=)` is about to ask for: it is handed over once,
    then released.
    """

    opened: Checkpoint | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            SavingError: it cannot be written; what was at `path` is as it was.
        """
        try:
            save_checkpoint(checkpoint, path)
        except OSError as error:
            left = "is as it was" if os.path.exists(path) else "was not made"
            raise SavingError(
                f"{error.filename}: {error.strerror}; the file {left}, and the run's other checkpoints are "
                "intact: free disk space, then continue with resume=last"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Return the content of a checkpoint; of the opened one without reading its file again."""
        opened, self.opened = self.opened, None
        if opened is not None and opened.path == Path(path):
            copy_to_memory(opened.content)
            return opened.content
        return super().load_checkpoint(path, map_location, weights_only)


class RecordSettings(L.Callback):
    """Write a run's settings into its checkpoints, from which stages and codecs are rebuilt.

    Args:
        settings: the resolved configuration, as plain values.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add them; a stage may add its own to the same dictionary."""
        checkpoint.setdefault("glc", {}).update(label(self.settings))


def keep_previous(last: Path) -> None:
    """Give the last checkpoint a second name, `previous.ckpt`, before another takes its place.

    A link, so that at no moment there is no `last.ckpt`; where the file system has no links, a rename.
    """
    if not last.is_file():
        return
    link = last.with_name(f".{PREVIOUS}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(last, link)
    except OSError:
        os.replace(last, last.with_name(PREVIOUS))
    else:
        os.replace(link, last.with_name(PREVIOUS))


def open_last(folder: Path) -> Checkpoint | None:
    """Open a run's last checkpoint, or the previous one where the last is missing or corrupt.

    A corrupt one is named in a warning and renamed to `last.ckpt.damaged`; the previous one takes its name,
    so that the next save does not push the good one out.

    Args:
        folder: the folder of the checkpoints.

    Returns:
        The checkpoint; None where there is neither.

    Raises:
        WeightsError: there are checkpoints, and none of them can be read.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    problems = [] if last.is_file() else [f"{last}: missing"]
    for path in (last, previous):
        if not path.is_file():
            continue
        try:
            opened = open_checkpoint(path)
        except WeightsError as error:
            problems.append(str(error))
            continue
        return opened if path == last else _promoted(opened, last, problems[0])
    if not last.is_file() and not previous.is_file():
        return None
    raise WeightsError("; ".join(problems))


def _promoted(previous: Checkpoint, last: Path, problem: str) -> Checkpoint:
    """Give the previous checkpoint the name of the last one, where this process may."""
    log.warning("%s; continuing from the previous one, %s", problem, previous.path)
    if not is_first_process():
        return previous
    if last.is_file():
        os.replace(last, last.with_name(LAST + _DAMAGED))
    try:
        os.link(previous.path, last)
    except OSError:
        return previous
    return replace(previous, path=last)


def is_first_process() -> bool:
    """Return whether this process is rank 0, before there is a trainer to ask.

    Lightning's own launcher names the processes that it starts by `LOCAL_RANK` and leaves each node's first
    alone, which is told its node by `NODE_RANK`; torchrun and SLURM name all of them.
    """
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(int(os.environ.get(name) or 0) == 0 for name in names)


def count_batches(trainer: L.Trainer) -> int:
    """Return how many batches this device has seen, the current one included; correct the logger's step.

    Call it when a batch starts.
    """
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = loop.total_batch_idx
    return loop.total_batch_idx + 1


def count_epochs(trainer: L.Trainer) -> None:
    """Clamp processed epochs to started ones. Call it when an epoch ends, before anything is saved."""
    progress = trainer.fit_loop.epoch_progress
    for tracker in (progress.total, progress.current):
        assert isinstance(tracker, _ProcessedTracker)
        tracker.processed = min(tracker.processed, tracker.started)


class DivergedError(RuntimeError):
    """The loss or the gradients are no longer finite; the message says what can be done."""


class LastCheckpoint(callbacks.Checkpoint):
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
        count_epochs(trainer)
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
