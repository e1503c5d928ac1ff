"""Train a stage: instantiate a composed configuration and fit.

```
glc train stage=vqvae model=tiny data=samples
```
"""

import copy
import errno
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import lightning as L
import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from glc.errors import SettingError
from glc.launch.checks import check_training
from glc.launch.config import UsageError
from glc.launch.failures import UNUSABLE, usage_error
from glc.launch.hardware import check_devices
from glc.launch.overrides import command_line, register_resolvers
from glc.launch.schema import conform
from glc.launch.start import checkpoint_folder, resolve_start
from glc.training.checkpoints import LAST, ChecksumCheckpointIO, DivergedError, RecordSettings, SavingError
from glc.training.init_from import check_resumable, warm_start

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """The result of a training run."""

    folder: Path
    """The run's folder."""
    checkpoint: Path | None
    """Its last checkpoint, if one was saved."""
    metrics: dict[str, float]
    """The last values logged, by name, such as `val/loss`."""


class Run(NamedTuple):
    """The objects of a configuration."""

    stage: L.LightningModule
    datamodule: L.LightningDataModule
    trainer: L.Trainer
    settings: dict[str, Any]
    """The resolved configuration, as plain values."""
    resume: Path | None
    """The checkpoint that the trainer restores; already opened."""


def prepare(cfg: DictConfig) -> Run:
    """Instantiate a composed configuration, which is not changed, and load its initial weights.

    Raises:
        UsageError: a setting is missing or conflicts with another.
    """
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.resolve(cfg)
    check_training(cfg)
    check_devices(cfg.trainer)
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg))
    start = resolve_start(cfg)

    L.seed_everything(cfg.seed, verbose=False)
    datamodule: L.LightningDataModule = instantiate(cfg.data)
    datamodule.setup("fit")
    make = instantiate(cfg.stage.module, _partial_=True, _convert_="all")
    stage: L.LightningModule = make() if start.codec is None else make(codec=start.codec)
    if start.resume is None:
        warm_start(stage, *start.sources, discriminator=start.discriminator)
    else:
        for difference in check_resumable(stage, start.resume, settings):
            log.warning("resuming with another setting: %s", difference)
    if start.codec is not None:
        log.info("for the codec %s", start.codec.source)

    callbacks = [RecordSettings(settings), *_made(cfg.callbacks)]
    plugins = _made(cfg.trainer.plugins)
    for plugin in plugins:
        if isinstance(plugin, ChecksumCheckpointIO):
            plugin.opened = start.resume
    options = {key: value for key, value in cfg.trainer.items() if key != "plugins"}
    instantiate(options, logger=False, plugins=plugins)  # what it refuses, before a logger writes
    trainer = instantiate(options, callbacks=callbacks, logger=_made(cfg.logger), plugins=plugins)
    return Run(stage, datamodule, trainer, settings, None if start.resume is None else start.resume.path)


def _made(group: DictConfig) -> list[Any]:
    """Instantiate the entries of a group that are not null."""
    return [instantiate(entry) for entry in group.values() if entry is not None]


def train(cfg: DictConfig) -> Trained:
    """Train a composed configuration (`glc.launch.compose("train", [...])`).

    Raises:
        UsageError: the configuration cannot be run; nothing has been written.
    """
    cfg = conform(cfg, "train")
    quieten()
    torch.set_float32_matmul_precision("high")
    try:
        stage, datamodule, trainer, settings, resume = prepare(cfg)
    except UNUSABLE as error:
        raise usage_error(error, cfg) from error
    exit_code = 1
    try:
        for logger in trainer.loggers:
            logger.log_hyperparams(settings)
        if cfg.overwrite and resume is None and trainer.is_global_zero:
            # Only after all other checks have passed.
            for old in checkpoint_folder(cfg.dir).glob("*.ckpt"):
                old.unlink()
        if cfg.validate_first and resume is None:
            trainer.validate(stage, datamodule=datamodule, verbose=False)
        trainer.fit(stage, datamodule=datamodule, ckpt_path=resume, weights_only=True)
        exit_code = 0
        last = checkpoint_folder(cfg.dir) / LAST
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return Trained(Path(cfg.dir), last if last.is_file() else None, metrics)
    finally:
        # Each job of a sweep ends its own W&B run, with its exit code.
        wandb.finish(exit_code)


def quieten() -> None:
    """Silence warnings about intended behaviour."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    # Frozen networks are in evaluation mode on purpose.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    # A resumed run, or one restarted with `overwrite=true`; other cases were refused before.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # The codebooks' usage is a metric, which torchmetrics already sums over devices.
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
    # A deprecation inside Lightning.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


class JobFailedError(RuntimeError):
    """A job of a sweep failed; the message gives the reason."""


def stop(code: int, message: str, error: Exception) -> NoReturn:
    """Exit with a code; in a sweep, fail only this job, so that the others still run."""
    log.error("error: %s", message)
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        raise JobFailedError(message) from error
    raise SystemExit(code) from error


def run(cfg: DictConfig) -> float | None:
    """Hydra's entry: train, and report errors that the user can fix in one line.

    Returns the last `val/loss`, for sweeps that minimise it.
    """
    register_resolvers()
    try:
        return train(cfg).metrics.get("val/loss")
    except (UsageError, SettingError) as error:
        stop(2, str(error), error)
    except (DivergedError, SavingError) as error:
        stop(1, str(error), error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = f"{error.filename}: " if error.filename else ""
        hint = "the run's checkpoints are intact; free disk space, then rerun with resume=last"
        stop(1, f"{where}{error.strerror}: {hint}", error)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry; `arguments` None: `sys.argv`."""
    command_line(run, "train", arguments)


if __name__ == "__main__":
    main()
