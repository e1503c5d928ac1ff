"""Artifacts of W&B with lineage: what a run starts from and what it makes.

| type | content | made by | used by |
|---|---|---|---|
| `dataset` | `manifest.json` of a packed set | the first run that uses it | training |
| `checkpoint` | `last.ckpt`, and the best one if it is kept | training | the next stage, `glc export` |
| `codec` | weights file and its card | `glc export`, the first run that uses it | evaluation, fine-tuning |
| `evaluation` | `summary.json` | `glc eval` | |

An artifact's version is the checksum of its content. Who makes a file and who uses it therefore name the same
version without asking the server, also in runs that are stored offline and uploaded in any order.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint

from glc.data.shard_writer import MANIFEST, read_manifest
from glc.training.checkpoints import LastCheckpoint
from glc.training.loggers import RateDistortionLogger

log = logging.getLogger(__name__)

LINEAGE = "lineage"
"""Key of W&B's configuration with the names and checksums of the artifacts that a run uses."""


class File(NamedTuple):
    """The content of an artifact."""

    type: str
    name: str
    files: tuple[Path, ...]
    metadata: Mapping[str, Any] = {}


def valid_name(text: str) -> str:
    """Return a text as a name of an artifact: letters, digits, `-`, `_` and `.`, at most 128 characters."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-")[-128:]


def packed_sets(paths: Sequence[str | Path]) -> Iterator[File]:
    """Yield the packed sets among data sources: folders with a manifest, or shards inside them."""
    for folder in dict.fromkeys(path if path.is_dir() else path.parent for path in map(Path, paths)):
        if (folder / MANIFEST).is_file():
            manifest = read_manifest(folder)
            about = {"images": manifest.count, "bytes": manifest.bytes, "folder": str(folder.resolve())}
            yield File("dataset", valid_name(f"data-{folder.resolve().name}"), (folder / MANIFEST,), about)


def checkpoint(path: Path, settings: Mapping[str, Any], step: int, **more: Any) -> File:
    """Return a training checkpoint.

    Args:
        path: the file.
        settings: the run's configuration.
        step: optimizer steps done.
        **more: further metadata.
    """
    folder, root = (Path(str(settings.get(key) or ".")).resolve() for key in ("dir", "runs_dir"))
    run = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name
    stage = settings.get("stage")
    about = {"run": run, "stage": stage.get("name") if isinstance(stage, Mapping) else None, "step": step}
    return File("checkpoint", valid_name(f"checkpoint-{run}"), (path,), {**about, **more})


def codec(path: Path, fingerprint: str | None) -> File:
    """Return a codec's weights file `NAME.safetensors`, with its card `NAME.md` if there is one."""
    card = path.with_suffix(".md")
    files = (path, card) if card.is_file() else (path,)
    return File("codec", valid_name(f"codec-{path.stem}"), files, {"fingerprint": fingerprint})


UPLOAD_MB = 100.0


def artifact(found: File, upload_mb: float = UPLOAD_MB) -> wandb.Artifact:
    """Return an artifact; files above `upload_mb` megabytes are referenced by their path and checksum."""
    made = wandb.Artifact(found.name, found.type, metadata=dict(found.metadata))
    for path in found.files:
        if path.stat().st_size > upload_mb * 1e6:
            made.add_reference(path.resolve().as_uri(), name=path.name)
        else:
            made.add_file(str(path), name=path.name)
    return made


def use(run: Any, found: File, upload_mb: float = UPLOAD_MB) -> None:
    """Record that a W&B run uses an artifact, which is logged if the server does not have it.

    The client refuses `use_artifact` offline. It can log an artifact that is used as soon as it is uploaded,
    which is what `use_artifact` does with an artifact that the server may not have.
    """
    made = artifact(found, upload_mb)
    if run.offline:
        run._log_artifact(made, is_user_created=True, use_after_commit=True)
    else:
        run.use_artifact(made)
    entry = {"type": found.type, "digest": made.digest, "path": str(found.files[0].resolve())}
    run.config.update(
        {LINEAGE: {**dict(run.config.get(LINEAGE, {})), found.name: entry}}, allow_val_change=True
    )


class Lineage(L.Callback):
    """Log what a run starts from, before its first step, and its checkpoints at the end.

    Args:
        inputs: packed sets, checkpoints and codecs.
        settings: the run's configuration.
    """

    def __init__(self, inputs: Sequence[File], settings: Mapping[str, Any]) -> None:
        self.inputs = inputs
        self.settings = settings

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the inputs."""
        for run, upload_mb in _runs(trainer):
            for found in self.inputs:
                with not_fatal(found.name):
                    use(run, found, upload_mb)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the last checkpoint, and the best one where a `ModelCheckpoint` monitors a value."""
        for run, upload_mb in _runs(trainer):
            for alias, path in _kept(trainer):
                found = checkpoint(path, self.settings, trainer.global_step, kept=alias)
                with not_fatal(found.name):
                    run.log_artifact(artifact(found, upload_mb), aliases=["latest", alias])


def _runs(trainer: L.Trainer) -> Iterator[tuple[Any, float]]:
    """Yield the W&B run and the limit of uploads of each logger that logs artifacts, on rank 0."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, RateDistortionLogger) and logger.artifacts:
            yield logger.experiment, logger.upload_mb


def _kept(trainer: L.Trainer) -> Iterator[tuple[str, Path]]:
    """Yield alias and file of the best checkpoint and of the last, which comes last and is the latest."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            yield "best", Path(callback.best_model_path)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint) and callback.path.is_file():
            yield "last", callback.path


@contextmanager
def not_fatal(name: str) -> Iterator[None]:
    """Warn of an artifact that cannot be logged: training must not end for it."""
    try:
        yield
    except (wandb.errors.Error, OSError, ValueError, TypeError) as error:
        log.warning("W&B: artifact %s is not logged: %s", name, " ".join(str(error).split()))
