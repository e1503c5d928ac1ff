"""What a training run starts from: a checkpoint to resume, networks of other files, a finished codec."""

from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, ListConfig

from glc.codec.convert.read import Source, open_source
from glc.codec.weights.catalog import catalog, find
from glc.codec.weights.export import read_codec
from glc.codec.weights.file import Weights
from glc.io.checkpoint import Checkpoint, open_checkpoint
from glc.launch.config import UsageError
from glc.training.checkpoints import LAST, is_first_process, open_last
from glc.training.init_from import has_discriminator


class Start(NamedTuple):
    """What a run starts from; every file is open, and was opened once."""

    resume: Checkpoint | None = None
    """The checkpoint to resume."""
    sources: tuple[Source, ...] = ()
    """Files whose networks start the stage; of several that hold a network, the first gives it."""
    discriminator: Source | None = None
    """Where the discriminator comes from when none of `sources` has one."""
    codec: Weights | None = None
    """The finished codec of a stage that trains one network for it."""


def checkpoint_folder(folder: str | Path) -> Path:
    """Return where a run keeps its checkpoints."""
    return Path(folder) / "checkpoints"


def resolve_start(cfg: DictConfig) -> Start:
    """Find and open what a configuration starts from (`resume`, `init_from`, `stage.discriminator_from`).

    Raises:
        UsageError: a file is missing, is another stage's, or a run would be overwritten.
        WeightsError: a file cannot be read.
    """
    files = _Files()
    resume = _checkpoint_to_resume(cfg)
    if cfg.stage.get("codec"):  # which the stage needs to resume, too
        return Start(resume, codec=_finished_codec(cfg, files))
    if resume is not None:
        return Start(resume)
    sources = tuple(_initial_weights(cfg, files))
    wanted = bool(sources) and not any(has_discriminator(source) for source in sources)
    return Start(None, sources, _discriminator(cfg, files) if wanted else None)


class _Files:
    """Opens each file once, however often the configuration names it."""

    def __init__(self) -> None:
        self._opened: dict[Path, Source] = {}

    def open(self, path: Path) -> Source:
        """Return a file, opened."""
        key = path.resolve()
        if key not in self._opened:
            self._opened[key] = open_source(path)
        return self._opened[key]

    def last(self, folder: Path) -> Source | None:
        """Return the last checkpoint of a run, from its folder or from that of its checkpoints."""
        for place in (checkpoint_folder(folder), folder):
            if (place / LAST).resolve() in self._opened:
                return self._opened[(place / LAST).resolve()]
            found = open_last(place)
            if found is not None:
                return self._opened.setdefault(found.path.resolve(), open_source(found))
        return None


def _no_checkpoint(given: str) -> UsageError:
    return UsageError(f"{given}: has no checkpoints/{LAST}; give a checkpoint or a run's folder")


def _given(cfg: DictConfig) -> list[str]:
    """Return what `init_from` names."""
    given = list(cfg.init_from) if isinstance(cfg.init_from, ListConfig) else [cfg.init_from]
    if not given or any(name in (None, "", "none") for name in given):
        raise UsageError(f"init_from={cfg.init_from}: give files or models, or init_from=none")
    return [str(name) for name in given]


def _initial_weights(cfg: DictConfig, files: _Files) -> list[Source]:
    """Open what `init_from` names, by default the previous stage's last checkpoint of the same run name."""
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
            f"stage={cfg.stage.name} starts from stage={previous}, and {path} does not exist: "
            f"train that stage under name={cfg.name} first, or give init_from=CHECKPOINT (or init_from=none)"
        )
    return [found]


def _file_or_model(name: str, files: _Files) -> Source:
    """Open what a path, a run's folder or a model's name stands for.

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


def _finished_codec(cfg: DictConfig, files: _Files) -> Weights:
    """Read the codec of a stage that trains one network for it."""
    if cfg.init_from is not None and cfg.init_from != "none":
        named = _given(cfg)
        if len(named) > 1:
            raise UsageError(f"init_from={cfg.init_from}: stage={cfg.stage.name} is for one codec")
        path = Path(named[0])
        if path.suffix != ".ckpt" and not (path.is_dir() and files.last(path)):
            return read_codec(named[0])
    sources = _initial_weights(cfg, files)
    if not sources:
        raise UsageError(f"stage={cfg.stage.name} needs a finished codec: init_from=CODEC.safetensors")
    return read_codec(sources[0].checkpoint or sources[0].path)


def _discriminator(cfg: DictConfig, files: _Files) -> Source | None:
    """Open the checkpoint that `stage.discriminator_from` names; `auto` is stage I's of the same run name."""
    given = cfg.stage.get("discriminator_from")
    if given in (None, "none"):
        return None
    if given == "auto":
        return files.last(Path(cfg.runs_dir) / cfg.name / "vqvae")
    if not Path(given).is_file():
        raise UsageError(f"stage.discriminator_from={given}: no such file; give a checkpoint, auto or none")
    return files.open(Path(given))


def _checkpoint_to_resume(cfg: DictConfig) -> Checkpoint | None:
    """Open the checkpoint to resume, if any; refuse to overwrite a run."""
    folder = checkpoint_folder(cfg.dir)
    if cfg.resume is None:
        # Other processes may already see checkpoints of the very run that they are part of.
        if is_first_process() and not cfg.overwrite and any(folder.glob("*.ckpt")):
            raise UsageError(
                f"{folder} has checkpoints: continue with resume=last, choose another name=, "
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
        raise UsageError(f"{named}: {path} does not exist")
    if opened.stage != cfg.stage.name:
        raise UsageError(
            f"{named}: {opened.path} is of stage={opened.stage}, and this is stage={cfg.stage.name}: "
            "to start from its weights, give init_from= instead"
        )
    return opened
