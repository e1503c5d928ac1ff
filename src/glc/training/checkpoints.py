"""Checkpoints of a run: saving, choosing the one to resume from, and a fix of two counters on resume.

Lightning 2.6 resumes a checkpoint that was saved at the end of an epoch by ending that epoch a second time,
without a batch. Two counters count this as an epoch and a batch: the data would skip an epoch, and each
logged step would be one too high. `count_batches` and `count_epochs` correct them.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import callbacks
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.trainer.states import TrainerFn

from glc.errors import WeightsError
from glc.io.checkpoint import Checkpoint, copy_to_memory, label, open_checkpoint, save_checkpoint

log = logging.getLogger(__name__)

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
"""The checkpoint before the last, used if the last is corrupt."""
_DAMAGED = ".damaged"


class SavingError(RuntimeError):
    """A checkpoint could not be written; the message says which files are left and what to do."""


class ChecksumCheckpointIO(TorchCheckpointIO):
    """Save atomically with a checksum (`glc.io.checkpoint`); load an opened checkpoint without a second read.

    Set `opened` to the checkpoint that `trainer.fit(ckpt_path=)` will load; it is returned once.
    """

    opened: Checkpoint | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            SavingError: it cannot be written; an existing file at `path` is unchanged.
        """
        try:
            save_checkpoint(checkpoint, path)
        except OSError as error:
            left = "is unchanged" if os.path.exists(path) else "was not created"
            raise SavingError(
                f"{error.filename}: {error.strerror}; the file {left}, and the run's other checkpoints are "
                "intact; free disk space, then rerun with resume=last"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Return the content of a checkpoint; for the opened one, without reading its file again."""
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
        """Add the settings; a stage may add its own entries to the same dictionary."""
        checkpoint.setdefault("glc", {}).update(label(self.settings))


def keep_previous(last: Path) -> None:
    """Link the last checkpoint as `previous.ckpt` before it is replaced.

    A hard link, so that `last.ckpt` always exists; a rename where the file system has no links.
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

    A corrupt `last.ckpt` is logged as a warning and renamed to `last.ckpt.damaged`; the previous one takes
    its name, so that the next save does not replace the intact one by the corrupt one.

    Args:
        folder: of the checkpoints.

    Returns:
        The checkpoint; None if neither exists.

    Raises:
        WeightsError: checkpoints exist, but none can be read.
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
    """Link the previous checkpoint as the last one, on rank 0 only."""
    log.warning("%s; resuming from the previous checkpoint, %s", problem, previous.path)
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
    """Return whether this process is rank 0, before a trainer exists.

    Lightning's launcher sets `LOCAL_RANK` in the processes that it starts, but not in the first process of a
    node, which has `NODE_RANK`; torchrun and SLURM set the variables of all processes.
    """
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(int(os.environ.get(name) or 0) == 0 for name in names)


def count_batches(trainer: L.Trainer) -> int:
    """Return the number of batches on this device, including the current one; correct the logger's step.

    Call it at the start of a batch.
    """
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = loop.total_batch_idx
    return loop.total_batch_idx + 1


def count_epochs(trainer: L.Trainer) -> None:
    """Clamp processed epochs to started ones. Call it at the end of an epoch, before saving."""
    progress = trainer.fit_loop.epoch_progress
    for tracker in (progress.total, progress.current):
        assert isinstance(tracker, _ProcessedTracker)
        tracker.processed = min(tracker.processed, tracker.started)


CHECK_EVERY = 50
"""Batches between checks for divergence if nothing is logged."""


class DivergedError(RuntimeError):
    """The loss or the gradients are no longer finite; the message says what to do."""


class LastCheckpoint(callbacks.Checkpoint):
    """Save `last.ckpt` periodically, before each validation, and at the end of each epoch and of training.

    `resume=last` and the next stage start from it; `previous.ckpt` is the one before. A `Checkpoint` callback
    runs after all others, so the file holds the EMA of the same step. It saves before a validation, so that a
    signal or an error there costs no step, and at the end of the last epoch, not at the end of training,
    because by then the live weights have been replaced by the EMA.

    Args:
        dirpath: folder of the checkpoint.
        every_n_steps: period in steps within an epoch; 0 for never.

    Raises:
        DivergedError: training diverged; the last checkpoint is not replaced.
    """

    def __init__(self, dirpath: str | Path, every_n_steps: int = 1000) -> None:
        self.path = Path(dirpath) / LAST
        self.every_n_steps = every_n_steps
        self.saved_step = -1
        """Step of the last checkpoint, or the step at which the run started."""
        self._validation_is_due = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the step at which a run starts: nothing is saved between the batches of one step."""
        self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save periodically."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % (every or CHECK_EVERY) == 0:
            self._check(trainer)
        if step > 0 and self.every_n_steps and step % self.every_n_steps == 0 and not trainer.is_last_batch:
            self._save(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save before a validation within training, where the weights are not yet those of the EMA."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validation_is_due = True
            self._save(trainer, pl_module)
            self._validation_is_due = False

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have a run that resumes before a validation do it: Lightning completes one that is in progress."""
        if self._validation_is_due:
            first = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress.update(total=first, current=dict(first), is_last_batch=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save at the end of an epoch, which includes the end of training."""
        count_epochs(trainer)
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self.saved_step = -1  # save again: before the validation the last epoch was not complete
        self._save(trainer, pl_module)

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self.saved_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._check(trainer)
            self._check_weights(trainer, pl_module)
            self.saved_step = trainer.global_step
            if trainer.is_global_zero:
                keep_previous(self.path)
            trainer.save_checkpoint(self.path, weights_only=False)

    def _check(self, trainer: L.Trainer) -> None:
        for name in ("train/loss", "train/grad_norm"):
            value = trainer.callback_metrics.get(name)
            if value is not None and not value.isfinite():
                self._diverged(trainer, f"{name} is {float(value)}")

    def _check_weights(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The last step may have had finite gradients and a huge learning rate.
        trained = [p.detach() for p in pl_module.parameters() if p.requires_grad]
        if trained and not torch.nn.utils.get_total_norm(trained).isfinite():
            self._diverged(trainer, "the norm of the weights is not finite")

    def _diverged(self, trainer: L.Trainer, what: str) -> NoReturn:
        folder = self.path.parent
        left = [path for path in (self.path, *sorted(folder.glob("*.ckpt"), reverse=True)) if path.is_file()]
        smaller = "a smaller stage.optimizer.lr or stage.clip"
        advice = (
            f"resume={left[0]} has the last good weights; use {smaller}"
            if left
            else f"start again with {smaller}"
        )
        if not left:
            advice = f"no checkpoint had been saved; {advice}"
        raise DivergedError(f"training diverged: {what} at step {trainer.global_step}; {advice}")
