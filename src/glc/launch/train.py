"""Train a stage: compose the configuration, make the objects, fit.

python -m glc.launch.train stage=vqvae model=tiny data=samples
"""

import errno
import logging
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import hydra
import lightning as L
import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from glc.launch.overrides import CONF, explain_overrides, remember_swept_keys, swept_name
from glc.launch.start import (
    UsageError,
    checkpoint_folder,
    find_checkpoint_to_resume,
    find_discriminator,
    find_initial_weights,
)
from glc.losses.perceptual import WeightsUnavailable
from glc.training.checkpoints import DivergedError, SavingError
from glc.training.init_from import check_resumable, transfer, transfer_discriminator
from glc.training.stages.base import Stage

log = logging.getLogger(__name__)

PRECISIONS = ("32-true", "bf16-mixed")


def per_device(batch: int, devices: int | str, num_nodes: int, accumulate: int) -> int:
    """Return the pictures per device and pass that make a batch over all of them.

    Raises:
        ValueError: when the batch cannot be divided so, or the number of devices is not known.
    """
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(
            f"trainer.devices={devices}: give the number, so that batch={batch} can be divided among them "
            "(or set data.batch_size)"
        )
    parts = devices * num_nodes * accumulate
    if parts < 1 or batch % parts:
        raise ValueError(
            f"batch={batch} does not divide among trainer.devices={devices} x trainer.num_nodes={num_nodes} "
            f"x stage.accumulate={accumulate}: change one of them (or set data.batch_size)"
        )
    return batch // parts


def register_resolvers() -> None:
    """Make what `${...:}` calls known to configurations, also in a process that got them pickled."""
    OmegaConf.register_new_resolver("per_device", per_device, replace=True)
    OmegaConf.register_new_resolver("swept_name", swept_name, replace=True)


register_resolvers()


class Run(NamedTuple):
    """What a configuration makes."""

    stage: Stage
    datamodule: L.LightningDataModule
    trainer: L.Trainer
    resume: Path | None


def prepare(cfg: DictConfig) -> Run:
    """Make the objects of a composed configuration and find the weights and the data that it names.

    Raises:
        UsageError: something is missing or does not go together.
    """
    # An application belongs to one finished codec, which it needs to go on as well.
    for_codec = "codec" in cfg.stage
    start = find_initial_weights(cfg) if for_codec else []
    if for_codec:
        if not start:
            raise UsageError(f"stage={cfg.stage.name} needs a finished codec: init_from=CODEC.safetensors")
        cfg.stage.codec = str(start[0])
    OmegaConf.resolve(cfg)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UsageError(f"give a value to {', '.join(missing)}: {missing[0]}=...")
    if not isinstance(cfg.seed, int):
        raise UsageError(f"seed={cfg.seed}: give a whole number; random numbers are functions of it")
    if str(cfg.trainer.precision) not in PRECISIONS:
        raise UsageError(
            f"trainer.precision={cfg.trainer.precision}: the stages train in {' or '.join(PRECISIONS)} "
            "(gradients scaled for float16 would pass by the discriminator and the clipping)"
        )
    resume = find_checkpoint_to_resume(cfg)
    if not for_codec and resume is None:
        start = find_initial_weights(cfg)
    L.seed_everything(cfg.seed, verbose=False)

    datamodule: L.LightningDataModule = instantiate(cfg.data)
    datamodule.setup("fit")
    stage: Stage = instantiate(cfg.stage.module)
    recipe = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(recipe, dict)
    stage.recipe = {str(key): value for key, value in recipe.items()}
    if for_codec:
        log.info("for the codec %s", start[0])
    elif start:
        loaded = transfer(stage, *start)
        adversary = None if "adversarial.discriminator" in loaded else find_discriminator(cfg)
        if adversary is not None and transfer_discriminator(stage, adversary):
            log.info("the discriminator is that of %s", adversary)
    elif resume is None:
        stage.adopt([])
    if resume is not None:
        for difference in check_resumable(stage, resume):
            log.warning("resuming with another setting: %s", difference)
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback is not None]
    loggers = [instantiate(logger) for logger in cfg.logger.values() if logger is not None]
    plugins = [instantiate(plugin) for plugin in cfg.trainer.plugins.values() if plugin is not None]
    settings = {key: value for key, value in cfg.trainer.items() if key != "plugins"}
    trainer: L.Trainer = instantiate(settings, callbacks=callbacks, logger=loggers, plugins=plugins)
    return Run(stage, datamodule, trainer, resume)


def cause_of(error: BaseException) -> BaseException:
    """Return what made an object's construction fail."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def train(cfg: DictConfig) -> float | None:
    """Run a composed configuration; returns the last `val/loss` for sweeps that look for the best.

    Raises:
        UsageError: when the configuration cannot be run, before anything is written.
    """
    quieten()
    torch.set_float32_matmul_precision("high")
    try:
        stage, datamodule, trainer, resume = prepare(cfg)
    except (ValueError, OSError, WeightsUnavailable, InstantiationException, OmegaConfBaseException) as error:
        cause = cause_of(error)
        if isinstance(cause, ValueError | TypeError | OSError | WeightsUnavailable | OmegaConfBaseException):
            raise UsageError(str(cause)) from error
        raise
    exit_code = 1
    try:
        for logger in trainer.loggers:
            logger.log_hyperparams(stage.recipe)
        if cfg.overwrite and resume is None and trainer.is_global_zero:
            # Only now that everything else is in order.
            for old in checkpoint_folder(cfg.dir).glob("*.ckpt"):
                old.unlink()
        if cfg.validate_first and resume is None:
            trainer.validate(stage, datamodule=datamodule, verbose=False)
        trainer.fit(stage, datamodule=datamodule, ckpt_path=resume, weights_only=True)
        loss = trainer.callback_metrics.get("val/loss")
        exit_code = 0
        return None if loss is None else float(loss)
    finally:
        # Each job of a sweep ends its own run, and one that failed says so.
        wandb.finish(exit_code)


def quieten() -> None:
    """Silence notices about what is meant to be so."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    # Frozen networks are in evaluation mode on purpose.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    # A continued run, or one that `overwrite=true` starts anew; all else was refused before.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # The codebooks' usage is a metric, which is summed over devices already.
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
    # From within Lightning, about torch.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


class JobFailedError(RuntimeError):
    """A job of a sweep has failed; the message says why."""


def stop(code: int, message: str, error: Exception) -> NoReturn:
    """End with an exit code; in a sweep only this job, so that the others go on before it ends with 1."""
    log.error("error: %s", message)
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        raise JobFailedError(message) from error
    raise SystemExit(code) from error


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def run(cfg: DictConfig) -> Any:
    """Hydra's entry: train, with what the user can mend reported in one line."""
    register_resolvers()
    try:
        return train(cfg)
    except UsageError as error:
        stop(2, str(error), error)
    except (DivergedError, SavingError) as error:
        stop(1, str(error), error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = f"{error.filename}: " if error.filename else ""
        hint = "the run's checkpoints are whole; see to the disk and continue with resume=last"
        stop(1, f"{where}{error.strerror}: {hint}", error)


def main() -> None:
    """Command line entry; a mistyped key is answered with the keys that it may have meant."""
    problem = explain_overrides(sys.argv[1:])
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2)
    remember_swept_keys(sys.argv[1:])
    run()
