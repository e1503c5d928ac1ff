"""Find the start of a training run: a checkpoint to resume, initial weights, or a finished codec."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig

from glc.codec.convert.read import Source, open_source
from glc.codec.weights.catalog import catalog, find
from glc.codec.weights.export import read_codec
from glc.codec.weights.file import Weights
from glc.io.checkpoint import Checkpoint, open_checkpoint
from glc.launch.config import UsageError, total_steps
from glc.training.checkpoints import LAST, is_first_process, open_last
from glc.training.init_from import has_discriminator

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """The start of a run; each file has been opened once and is open."""

    resume: Checkpoint | None = None
    """The checkpoint to resume."""
    sources: tuple[Source, ...] = ()
    """Files with initial weights; each network comes from the first file that contains it."""
    discriminator: Source | None = None
    """File with the discriminator, if none of `sources` contains one."""
    new_discriminator: bool = False
    """Train a new discriminator, even if `sources` contain one."""
    codec: Weights | None = None
    """The finished codec of a fine-tune stage, which trains one network for it."""


def checkpoint_folder(folder: str | Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return Path(folder) / "checkpoints"


def resolve_start(cfg: DictConfig) -> Start:
    """Find and open the files of `resume`, `init_from` and `stage.discriminator_from`.

    Raises:
        UsageError: a file is missing or of another stage, or a run would be overwritten.
        WeightsError: a file cannot be read.
    """
    files = _Files()
    resume = _checkpoint_to_resume(cfg)
    if cfg.stage.get("codec"):  # the stage needs it for resuming, too
        codec, source = _finished_codec(cfg, files)
        if resume is not None or "discriminator_from" not in cfg.stage:
            return Start(resume, codec=codec)
        given = source is not None and has_discriminator(source) and cfg.stage.discriminator_from != "none"
        return Start(codec=codec, discriminator=source if given else _discriminator(cfg, files))
    if resume is not None:
        return Start(resume)
    sources = tuple(_initial_weights(cfg, files))
    _warn_of_unfinished(sources)
    wanted = bool(sources) and not any(has_discriminator(source) for source in sources)
    new = cfg.stage.get("discriminator_from") == "none"
    return Start(None, sources, _discriminator(cfg, files) if wanted else None, new)


class _Files:
    """Opens each file once, even if the configuration names it several times."""

    def __init__(self) -> None:
        self._opened: dict[Path, Source] = {}

    def open(self, path: Path) -> Source:
        """Open a file, or return it if it is open."""
        key = path.resolve()
        if key not in self._opened:
            self._opened[key] = open_source(path)
        return self._opened[key]

    def last(self, folder: Path) -> Source | None:
        """Open the last checkpoint of a run; `folder` is the run or its folder of checkpoints."""
        for checkpoints in (checkpoint_folder(folder), folder):
            if (checkpoints / LAST).resolve() in self._opened:
                return self._opened[(checkpoints / LAST).resolve()]
            found = open_last(checkpoints)
            if found is not None:
                return self._opened.setdefault(found.path.resolve(), open_source(found))
        return None


def _no_checkpoint(given: str) -> UsageError:
    return UsageError(f"{given}: no checkpoints/{LAST} in this folder; give a checkpoint or a run's folder")


def _given(cfg: DictConfig) -> list[str]:
    """Return the entries of `init_from`."""
    given = list(cfg.init_from) if isinstance(cfg.init_from, ListConfig) else [cfg.init_from]
    if not given or any(name in (None, "", "none") for name in given):
        raise UsageError(f"init_from={cfg.init_from}: empty entry; give files or models, or init_from=none")
    return [str(name) for name in given]


def _initial_weights(cfg: DictConfig, files: _Files) -> list[Source]:
    """Open the files of `init_from`; default: the previous stage's last checkpoint of the same run name."""
    previous = cfg.stage.get("previous")
    if cfg.init_from == "none" or (cfg.init_from is None and previous is None):
        return []
    if cfg.init_from is not None:
        return [_file_or_model(name, files) for name in _given(cfg)]
    run = Path(cfg.runs_dir) / cfg.name / previous
    found = files.last(run)
    if found is None:
        path = checkpoint_folder(run) / LAST
        raise UsageError(
            f"{path}: no such file, and stage={cfg.stage.name} starts from stage={previous}; "
            f"train that stage with name={cfg.name} first, or give init_from=CHECKPOINT or init_from=none"
        )
    return [found]


def _warn_of_unfinished(sources: Sequence[Source]) -> None:
    """Warn of checkpoints of runs that have not reached their last step."""
    for checkpoint in (source.checkpoint for source in sources):
        last = None if checkpoint is None else _last_step(checkpoint.settings)
        if checkpoint is not None and last is not None and checkpoint.step < last:
            log.warning(
                "starting from unfinished stage=%s, at step %d of %d: %s",
                *(checkpoint.stage, checkpoint.step, last, checkpoint.path),
            )


def _last_step(settings: Mapping[str, Any]) -> int | None:
    """Return the last step of a run with these settings; None if it cannot be known."""
    trainer, data, stage = (settings.get(key) or {} for key in ("trainer", "data", "stage"))
    try:
        return total_steps(
            trainer.get("max_steps", -1),
            trainer.get("max_epochs"),
            data.get("epoch_batches"),
            stage.get("accumulate", 1),
        )
    except ValueError:
        return None


def _file_or_model(name: str, files: _Files) -> Source:
    """Open a file, the last checkpoint of a run's folder, or a catalogue model.

    A folder with a catalogue model's name is ignored unless it holds a checkpoint.
    """
    path = Path(name)
    if path.is_dir():
        found = files.last(path)
        if found is not None:
            return found
        if name not in catalog():
            raise _no_checkpoint(f"init_from={path}")
    return files.open(path if path.is_file() or path.suffix or len(path.parts) > 1 else find(name))


def _finished_codec(cfg: DictConfig, files: _Files) -> tuple[Weights, Source | None]:
    """Read the finished codec of a fine-tune stage; also return the checkpoint that it comes from, if any."""
    if cfg.init_from is not None and cfg.init_from != "none":
        named = _given(cfg)
        if len(named) > 1:
            other = "; stage.discriminator_from= takes another" if "discriminator_from" in cfg.stage else ""
            raise UsageError(
                f"init_from={cfg.init_from}: stage={cfg.stage.name} needs one codec; give one file{other}"
            )
        path = Path(named[0])
        if path.suffix != ".ckpt" and not (path.is_dir() and files.last(path)):
            return read_codec(named[0]), None
    sources = _initial_weights(cfg, files)
    if not sources:
        raise UsageError(f"stage={cfg.stage.name}: needs a finished codec; give init_from=CODEC.safetensors")
    _warn_of_unfinished(sources)
    return read_codec(sources[0].checkpoint or sources[0].path), sources[0]


def _discriminator(cfg: DictConfig, files: _Files) -> Source | None:
    """Open the file of `stage.discriminator_from`; `auto` is stage I of the same run name."""
    given = cfg.stage.get("discriminator_from")
    if given in (None, "none"):
        return None
    if given == "auto":
        return files.last(Path(cfg.runs_dir) / cfg.name / "vqvae")
    if not Path(given).is_file():
        raise UsageError(f"stage.discriminator_from={given}: no such file; give a file, auto or none")
    return files.open(Path(given))


def _checkpoint_to_resume(cfg: DictConfig) -> Checkpoint | None:
    """Open the checkpoint to resume, if any; raise if a run would be overwritten."""
    folder = checkpoint_folder(cfg.dir)
    if cfg.resume is None:
        if cfg.trainer.get("fast_dev_run"):
            return None  # it writes nothing
        # Only in the first process: others may already see checkpoints that this run has saved.
        if is_first_process() and not cfg.overwrite and any(folder.glob("*.ckpt")):
            raise UsageError(
                f"{folder}: has checkpoints; resume with resume=last, choose another name=, "
                "or give overwrite=true"
            )
        return None
    named = f"resume={cfg.resume}"
    path = folder / LAST if cfg.resume in ("last", "auto") else Path(cfg.resume)
    if cfg.resume in ("last", "auto"):
        opened = open_last(folder)
        if opened is None and cfg.resume == "auto":
            return None
    elif path.is_dir():
        opened = open_last(checkpoint_folder(path)) or open_last(path)
        if opened is None:
            raise _no_checkpoint(named)
    else:
        opened = open_checkpoint(path) if path.is_file() else None
    if opened is None:
        raise UsageError(f"{named}: {path}: no such file")
    if opened.stage != cfg.stage.name:
        raise UsageError(
            f"{named}: {opened.path} is of stage={opened.stage}, not of stage={cfg.stage.name}; "
            "to start from its weights, give init_from= instead"
        )
    return opened
