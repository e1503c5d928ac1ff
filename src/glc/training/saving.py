"""Writing and finding checkpoints, so that a run survives being killed at any moment."""

import logging
import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO

from glc.codec.checkpoint import WeightsError, read_checkpoint
from glc.codec.seal import save_sealed
from glc.training.processes import is_first_process

log = logging.getLogger(__name__)

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
"""The checkpoint before the last, for when the last is damaged."""
_DAMAGED = ".damaged"


class SavingError(RuntimeError):
    """A checkpoint could not be written; the message says what is left and what to do."""


class SealedCheckpointIO(TorchCheckpointIO):
    """Lightning's way to the disk, but whole or not at all, and with a checksum (see `glc.codec.seal`)."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            SavingError: it cannot be written; what was at `path` is as it was.
        """
        try:
            save_sealed(checkpoint, path)
        except OSError as error:
            left = "is as it was" if os.path.exists(path) else "was not made"
            raise SavingError(
                f"{error.filename}: {error.strerror}; the file {left}, and the run's other checkpoints are "
                "whole: see to the disk and continue with resume=last"
            ) from error


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


def find_whole(folder: Path) -> Path | None:
    """Return a run's last checkpoint, or the one before where the last is missing or damaged.

    A damaged one is named in a warning and put aside as `last.ckpt.damaged`; the one before takes its place,
    so that the next save does not push the good one out.

    Returns:
        Its path; None where there is neither.

    Raises:
        WeightsError: there are checkpoints, and none of them can be read.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    if not last.is_file() and not previous.is_file():
        return None
    problems = []
    for path in (last, previous):
        if not path.is_file():
            continue
        try:
            read_checkpoint(path)
        except WeightsError as error:
            problems.append(str(error))
            continue
        if path == last:
            return last
        what = problems[0] if problems else f"{last}: missing"
        log.warning("%s; going on from the one before, %s", what, previous)
        if not is_first_process():
            return previous
        if last.is_file():
            os.replace(last, last.with_name(LAST + _DAMAGED))
        try:
            os.link(previous, last)
        except OSError:
            return previous
        return last
    raise WeightsError("; ".join(problems))
