"""Checks of a whole configuration before torch is imported: missing values, files, folders, conflicts."""

import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from glc.launch.config import UsageError
from glc.launch.overrides import check_once
from glc.launch.schema import is_ours

_PACK = "make them with `glc pack SOURCE DEST`, or correct the path"
_LOCAL = ("basic", "local", "joblib")
"""Launchers that start the jobs of a sweep on this machine."""


def check_command(words: Sequence[str], config_name: str, shards: Sequence[str] = ()) -> DictConfig | None:
    """Check a command line, and that what it names exists; `command_line` runs it next.

    Args:
        words: the command line.
        config_name: `train` or `evaluate`.
        shards: of an evaluation, instead of `testset.path`.

    Returns:
        Its configuration; None if it trains or evaluates nothing, or has a primary configuration of its own.

    Raises:
        UsageError: it cannot run; the message says what to change.
    """
    command = check_once(words, config_name)
    cfg, args = command.cfg, command.args
    if cfg is None or args.cfg is not None or command.config_name not in ("train", "evaluate"):
        return None
    overrides = dict(word.lstrip("+").partition("=")[::2] for word in args.overrides if "=" in word)
    if config_name == "train":
        check_training(cfg)
    else:
        check_evaluation(cfg, shards=bool(shards))
    if overrides.get("hydra/launcher", "basic") in _LOCAL:  # else the jobs have another file system
        check_files(cfg)
    if "hydra.run.dir" not in overrides:
        folder = cfg.dir if config_name == "train" else cfg.out
        check_folder(Path(folder), f"runs_dir={cfg.runs_dir}" if config_name == "train" else f"out={cfg.out}")
    return cfg


def local_processes(cfg: DictConfig) -> list[str]:
    """Return the settings of a configuration that start further processes on this machine."""
    found = []
    for key, least in (("data.num_workers", 1), ("trainer.devices", 2), ("processes", 2)):
        value: Any = OmegaConf.select(cfg, key)
        count = len(value) if isinstance(value, ListConfig) else value
        if isinstance(count, int) and count >= least:
            found.append(f"{key}={value}")
    return found


def trains_bfloat16(cfg: DictConfig) -> bool:
    """Return whether a configuration may train convolutions in bfloat16 on the CPU."""
    precision = str(OmegaConf.select(cfg, "trainer.precision"))
    return precision.startswith("bf16") and OmegaConf.select(cfg, "trainer.accelerator") in ("auto", "cpu")


def check_training(cfg: DictConfig) -> None:
    """Check the keys of a training configuration that depend on each other, and that all have a value.

    Raises:
        UsageError: a value is missing or conflicts with another.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UsageError(f"{', '.join(missing)}: no value; give {missing[0]}=...")
    interval, batches = cfg.trainer.get("val_check_interval"), cfg.data.get("epoch_batches")
    limit = cfg.trainer.get("limit_train_batches")
    if isinstance(limit, int) and isinstance(batches, int):
        batches = min(batches, limit)
    if isinstance(interval, float) and not 0 < interval <= 1:
        raise UsageError(
            f"trainer.val_check_interval={interval}: not valid; give a number of batches, or a share of an "
            "epoch above 0.0 and at most 1.0"
        )
    counted = cfg.trainer.get("check_val_every_n_epoch") is not None
    if isinstance(interval, int) and isinstance(batches, int) and counted and interval > batches:
        raise UsageError(
            f"trainer.val_check_interval={interval}: longer than an epoch of {batches} batches "
            "(data.epoch_batches); give a smaller number, or trainer.check_val_every_n_epoch=null to count "
            "over epochs"
        )
    callbacks = cfg.get("callbacks") or {}
    if not any(entry is not None for entry in cfg.logger.values()) and callbacks.get("learning_rate"):
        raise UsageError(
            "logger: all loggers are null, and callbacks.learning_rate needs one; keep one (logger=csv), or "
            "give callbacks.learning_rate=null too"
        )


def check_evaluation(cfg: DictConfig, shards: bool = False) -> None:
    """Check that a configuration of an evaluation has its values; `shards`: they are given apart.

    Raises:
        UsageError: a value is missing.
    """
    missing = OmegaConf.missing_keys(cfg)
    for key in ("codec", "out", *(() if shards else ("testset.path",))):
        if key in missing:
            raise UsageError(f"{key}: no value; give {key}=...")


def check_files(cfg: DictConfig) -> None:
    """Check that files and folders that a configuration names exist.

    Raises:
        UsageError: one does not.
    """
    for key, path, fix in _named_files(cfg):
        if not os.path.exists(os.path.expanduser(path)):
            raise UsageError(f"{key}: {path}: no such file or folder; {fix}")


def _named_files(cfg: DictConfig) -> Iterator[tuple[str, str, str]]:
    """Yield key, path and fix of each file that must exist; patterns and URLs are looked up later."""
    data = cfg.get("data") or {}
    for key in ("data.train", "data.val") if is_ours(data.get("_target_")) else ():
        for entry in _entries(cfg, key):
            if ":" not in entry.split("/")[0] and not glob.has_magic(entry) and "{" not in entry:
                yield key, entry, _PACK
    for key in ("perceptual.weights_dir", "metrics.weights_dir", "stage.style"):
        for entry in _entries(cfg, key):
            yield key, entry, "correct the path"
    for key, words in (
        ("init_from", ("none",)),
        ("resume", ("last", "auto")),
        ("stage.discriminator_from", ("auto", "none")),
        ("codec", ()),
    ):
        for entry in _entries(cfg, key):
            named = Path(entry).suffix or len(Path(entry).parts) > 1
            if named and entry not in words and entry not in (cfg.get("codecs") or {}):
                yield key, entry, "correct the path"


def _entries(cfg: DictConfig, key: str) -> list[str]:
    value: Any = OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
    entries = list(value) if isinstance(value, ListConfig) else [value]
    return [entry for entry in entries if isinstance(entry, str)]


def check_folder(folder: Path, named: str) -> None:
    """Check that a folder exists or can be made, and can be written to.

    Args:
        folder: the folder.
        named: the setting that chooses it, for the message.

    Raises:
        UsageError: it cannot be written to.
    """
    for path in (folder, *folder.absolute().parents):
        if path.is_symlink() and not path.exists():
            target = os.readlink(path)
            raise UsageError(f"{named}: {path} is a link to {target}, which does not exist; remove the link")
        if path.is_dir():
            try:
                with tempfile.TemporaryFile(dir=path):  # leaves nothing
                    return
            except OSError as error:
                text = f"{named}: cannot write to {path} ({error.strerror}); choose another folder"
                raise UsageError(text) from error
        if path.exists():
            raise UsageError(f"{named}: {path} is a file, not a folder; choose another folder")
