"""Loggers."""

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import wandb
from lightning.pytorch.loggers import WandbLogger

from glc.training.processes import is_first_process


def logged_in() -> bool:
    """Say whether W&B has a key: in the environment or kept by `wandb login`."""
    return bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False, verify=False)


def wandb_logger(
    project: str,
    group: str,
    dir: str | Path,
    runs_dir: str | Path,
    tags: Sequence[str] = (),
    resume: str | None = None,
) -> WandbLogger:
    """Return a W&B logger that never prompts: online when the user is logged in, offline otherwise.

    `WANDB_MODE` in the environment decides when it is set. The run is called after its folder below
    `runs_dir`. Its identity is kept in that folder, so a resumed run continues its W&B run.

    Args:
        project: W&B project.
        group: runs of one group stand together, such as those of a sweep.
        dir: the run's folder.
        runs_dir: the folder of all runs.
        tags: labels.
        resume: not None when the training run is continued.
    """
    folder = Path(dir).resolve()
    root = Path(runs_dir).resolve()
    name = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name
    mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    folder.mkdir(parents=True, exist_ok=True)
    identity = folder / "wandb-id.txt"
    if is_first_process() and (resume is None or not identity.is_file()):
        identity.write_text(uuid.uuid4().hex[:8])
    return WandbLogger(
        id=identity.read_text() if identity.is_file() else None,
        project=project,
        group=group,
        name=name,
        save_dir=folder,
        tags=list(tags),
        mode=mode,
        settings=wandb.Settings(silent=True, console="off"),
    )
