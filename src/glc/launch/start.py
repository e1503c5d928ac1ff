"""Where a training starts from: files of weights, a discriminator, a checkpoint to continue."""

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from glc.codec.weights.catalog import catalog, find
from glc.io.checkpoint import read_checkpoint
from glc.launch.config import UsageError
from glc.training.checkpoints import LAST, find_whole, is_first_process


def checkpoint_folder(folder: str | Path) -> Path:
    """Return where a run keeps its checkpoints."""
    return Path(folder) / "checkpoints"


def checkpoint_of(run: Path, given: str) -> Path:
    """Return the last whole checkpoint of a run's folder.

    Args:
        run: the folder.
        given: how the user named it, for the message.

    Raises:
        UsageError: when it has none.
        WeightsError: when none of them can be read.
    """
    path = find_whole(checkpoint_folder(run)) or find_whole(run)
    if path is None:
        raise UsageError(f"{given}: has no checkpoints/{LAST}; give a checkpoint or a run's folder")
    return path


def find_initial_weights(cfg: DictConfig) -> list[Path]:
    """Return the files to start from: those given, or the stage before's checkpoint under the same run name.

    Raises:
        UsageError: when the stage starts from another that was not trained.
    """
    if cfg.init_from == "none" or (cfg.init_from is None and cfg.stage.previous is None):
        return []
    if cfg.init_from is not None:
        given = list(cfg.init_from) if isinstance(cfg.init_from, ListConfig) else [cfg.init_from]
        if not given or any(name in (None, "", "none") for name in given):
            raise UsageError(f"init_from={cfg.init_from}: give files or models, or init_from=none")
        if "codec" not in cfg.stage:
            return [_checkpoint_or_model(str(name)) for name in given]
        if len(given) > 1:
            raise UsageError(f"init_from={cfg.init_from}: stage={cfg.stage.name} is for one codec")
        # Stages of an application take a run's folder or a model's name as it is.
        return [Path(str(given[0]))]
    folder = checkpoint_folder(Path(cfg.runs_dir) / cfg.name / cfg.stage.previous)
    path = find_whole(folder)
    if path is None:
        path = folder / LAST
        raise UsageError(
            f"stage={cfg.stage.name} starts from stage={cfg.stage.previous}, and {path} does not exist: "
            f"train that stage under name={cfg.name} first, or give init_from=CHECKPOINT (or init_from=none)"
        )
    return [path]


def _checkpoint_or_model(name: str) -> Path:
    """Return the file that a path, a run's folder or a model's name stands for.

    A folder that is called as a model is and holds no checkpoint does not hide it.

    Raises:
        UsageError: for a folder without checkpoints.
        WeightsError: for a word that is neither a file nor a model.
    """
    path = Path(name)
    run = path.is_dir() and (find_whole(checkpoint_folder(path)) or find_whole(path)) is not None
    if path.is_file() or run or (path.is_dir() and name not in catalog()):
        return checkpoint_of(path, f"init_from={path}") if path.is_dir() else path
    return path if path.suffix or len(path.parts) > 1 else find(name)


def find_discriminator(cfg: DictConfig) -> Path | None:
    """Return the checkpoint with the discriminator to go on with: the one given, or stage I's of this name.

    Raises:
        UsageError: when the one given does not exist.
    """
    given = cfg.stage.get("discriminator_from")
    if given in (None, "none"):
        return None
    if given == "auto":
        return find_whole(checkpoint_folder(Path(cfg.runs_dir) / cfg.name / "vqvae"))
    if not Path(given).is_file():
        raise UsageError(f"stage.discriminator_from={given}: no such file; give a checkpoint, auto or none")
    return Path(given)


def find_checkpoint_to_resume(cfg: DictConfig) -> Path | None:
    """Return the checkpoint to continue, if any; refuse to write over a run that exists.

    Raises:
        UsageError: when the checkpoint is missing or another stage's, or a run would be overwritten.
        WeightsError: when it cannot be read.
    """
    folder = checkpoint_folder(cfg.dir)
    if cfg.resume is not None:
        found = find_whole(folder) if cfg.resume in ("last", "auto") else Path(cfg.resume)
        if cfg.resume == "auto" and found is None:
            return None
        path = found or folder / LAST
        if path.is_dir():
            path = checkpoint_of(path, f"resume={cfg.resume}")
        if not path.is_file():
            raise UsageError(f"resume={cfg.resume}: {path} does not exist")
        trained = read_checkpoint(path)["glc"]["recipe"].get("stage", {}).get("name")
        if trained != cfg.stage.name:
            raise UsageError(
                f"resume={cfg.resume}: {path} is of stage={trained}, and this is stage={cfg.stage.name}: "
                "to start from its weights, give init_from= instead"
            )
        return path
    # Other processes may already see checkpoints of the very run that they are part of.
    if is_first_process() and not cfg.overwrite and any(folder.glob("*.ckpt")):
        raise UsageError(
            f"{folder} has checkpoints: continue with resume=last, choose another name=, "
            "or give overwrite=true"
        )
    return None
