"""Train a stage: instantiate a composed configuration and fit.

```
glc train stage=vqvae model=tiny data=samples
```
"""

import copy
import errno
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import lightning as L
import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf

from glc.errors import SettingError
from glc.io.locks import lock
from glc.launch.checks import check_training
from glc.launch.config import UsageError
from glc.launch.failures import UNUSABLE, usage_error
from glc.launch.hardware import check_devices
from glc.launch.lineage import inputs
from glc.launch.overrides import command_line, register_resolvers
from glc.launch.run_summary import closing, opening, without_bar
from glc.launch.schema import conform
from glc.launch.start import checkpoint_folder, resolve_start
from glc.training.artifacts import Lineage
from glc.training.checkpoints import (
    LAST,
    ChecksumCheckpointIO,
    DivergedError,
    LastCheckpoint,
    RecordSettings,
    SavingError,
    is_first_process,
)
from glc.training.init_from import check_resumable, warm_start
from glc.training.loggers import LogFirstStep
from glc.training.resuming import ApplySettings
from glc.training.stopping import (
    SIGNALS,
    TIME_LIMIT_CODE,
    Stop,
    StopAfterStep,
    Stopped,
    job_of_sweep,
    sweep_folder,
)

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
    stop: Stop | None = None
    """Why the run ended early (`max_minutes`); None for a complete run."""


class Run(NamedTuple):
    """The objects of a configuration."""

    stage: L.LightningModule
    datamodule: L.LightningDataModule
    trainer: L.Trainer
    settings: dict[str, Any]
    """The resolved configuration, as plain values."""
    resume: Path | None
    """The checkpoint that the trainer restores; already opened."""
    opening: str
    """What the run says at its start."""


def prepare(cfg: DictConfig, acquire: Callable[[], object] = lambda: None) -> Run:
    """Instantiate a composed configuration, which is not changed, and load its initial weights.

    Args:
        cfg: the configuration.
        acquire: called before anything is written.

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
    datamodule: L.LightningDataModule = instantiate(cfg.data, _convert_="all")
    datamodule.setup("fit")
    make = instantiate(cfg.stage.module, _partial_=True, _convert_="all")
    stage: L.LightningModule = make() if start.codec is None else make(codec=start.codec)
    internal = [RecordSettings(settings), StopAfterStep(cfg.max_minutes), LogFirstStep()]
    callbacks = [*internal, *_made(cfg.callbacks), Lineage(inputs(cfg, start), settings)]
    if start.resume is None:
        warm_start(
            stage,
            *start.sources,
            discriminator=start.discriminator,
            new_discriminator=start.new_discriminator,
        )
    else:
        differences = check_resumable(stage, start.resume, settings)
        for difference in differences:
            log.warning("resuming with another setting: %s", difference)
        same = not differences and start.resume.settings.get("stage") == settings["stage"]
        callbacks.append(ApplySettings(changed=not same))
        if start.resume.step >= cfg.trainer.max_steps > 0:
            log.warning(
                "%s is at step %d: nothing to train up to trainer.max_steps=%d",
                *(start.resume.path, start.resume.step, cfg.trainer.max_steps),
            )
    if start.codec is not None:
        log.info("for the codec %s", start.codec.source)

    plugins = _made(cfg.trainer.plugins)
    for plugin in plugins:
        if isinstance(plugin, ChecksumCheckpointIO):
            plugin.opened = start.resume
    options = {key: value for key, value in cfg.trainer.items() if key != "plugins"}
    if options.get("enable_progress_bar") is None:
        options["enable_progress_bar"] = sys.stdout.isatty()
    if not options["enable_progress_bar"]:
        callbacks = without_bar(callbacks)
    if 0 in (options.get("val_check_interval"), options.get("check_val_every_n_epoch")):
        # Never; Lightning divides by one and validates after each batch with the other.
        options |= {"val_check_interval": None, "check_val_every_n_epoch": 1, "limit_val_batches": 0}
    instantiate(options, logger=False, plugins=plugins)  # what it refuses, before a logger writes
    acquire()
    # Lightning replaces the loggers of a trial run, but making ours may write W&B's id.
    loggers = [CSVLogger(cfg.dir)] if cfg.trainer.get("fast_dev_run") else _made(cfg.logger)
    trainer = instantiate(options, callbacks=callbacks, logger=loggers, plugins=plugins)
    text = opening(cfg, stage, datamodule, trainer, start)
    resume = None if start.resume is None else start.resume.path
    return Run(stage, datamodule, trainer, settings, resume, text)


def _made(group: DictConfig) -> list[Any]:
    """Instantiate the entries of a group that are not null."""
    return [instantiate(entry) for entry in group.values() if entry is not None]


def train(cfg: DictConfig) -> Trained:
    """Train a composed configuration (`glc.launch.compose("train", [...])`).

    SIGTERM and SIGINT (Ctrl-C) end the run after the running step, with a checkpoint; a second signal ends
    the process at once.

    Raises:
        UsageError: the configuration cannot be run; nothing has been written.
        Stopped: a signal ended the run. It is a `SystemExit` with the exit code 128 + signal.
    """
    with SIGNALS, job_of_sweep():
        trained = _train(cfg)
        if trained.stop is not None and trained.stop.code != TIME_LIMIT_CODE:
            SIGNALS.hand_over()
            raise Stopped(trained.stop)
        return trained


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from training the same run within the context; rank 0 does it for all ranks.

    Raises:
        UsageError: another process trains it.
    """
    if not is_first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / ".lock") as held:
        if not held:
            raise UsageError(f"{folder}: another process is training this run; wait for it or change name=")
        yield


def _train(cfg: DictConfig) -> Trained:
    with ExitStack() as stack:
        if cfg.trainer.get("fast_dev_run"):
            return _train_locked(cfg, lambda: None)
        return _train_locked(cfg, lambda: stack.enter_context(run_lock(Path(cfg.dir))))


def _train_locked(cfg: DictConfig, acquire: Callable[[], object]) -> Trained:
    composed, cfg = cfg, conform(cfg, "train")
    quieten()
    torch.set_float32_matmul_precision("high")
    try:
        stage, datamodule, trainer, settings, resume, text = prepare(cfg, acquire)
    except UNUSABLE as error:
        raise usage_error(error, cfg) from error
    if not cfg.trainer.get("fast_dev_run"):
        record_job(composed)
    exit_code = 1
    started = time.monotonic()
    if trainer.is_global_zero:
        log.info("%s", text)
    try:
        for logger in trainer.loggers:
            logger.log_hyperparams(settings)
        trial = bool(cfg.trainer.get("fast_dev_run"))
        if cfg.overwrite and resume is None and trainer.is_global_zero and not trial:
            # Only after all other checks have passed.
            for old in checkpoint_folder(cfg.dir).glob("*.ckpt"):
                old.unlink()
        if cfg.validate_first and resume is None:
            trainer.validate(stage, datamodule=datamodule, verbose=False)
        with suppress(Stopped):  # a signal during validation; `_stop_of` has it
            trainer.fit(stage, datamodule=datamodule, ckpt_path=resume, weights_only=True)
        stop = _stop_of(trainer)
        if stop is None and not trainer.callback_metrics and trainer.enable_validation:
            # A complete run was resumed: nothing was trained, but a search needs its figures.
            trainer.validate(stage, datamodule=datamodule, verbose=False)
        exit_code = 0 if stop is None else stop.code
        last = checkpoint_folder(cfg.dir) / LAST
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if stop is None and trainer.is_global_zero:
            log.info("%s", closing(cfg, trainer.global_step, time.monotonic() - started, metrics))
        return Trained(Path(cfg.dir), last if last.is_file() else None, metrics, stop)
    finally:
        SIGNALS.training = False
        # Each job of a sweep ends its own W&B run, with its exit code.
        wandb.finish(exit_code)


def _stop_of(trainer: L.Trainer) -> Stop | None:
    """Return why, where and with which exit code a trainer stopped early; None if it did not."""
    stop = _callback(trainer, StopAfterStep).stop
    if stop is None:
        return None
    last = _callback(trainer, LastCheckpoint)
    saved = last is not None and last.saved_step == trainer.global_step and last.path.is_file()
    # Lightning kills all processes when one that it started exits with another code.
    environment = trainer.strategy.cluster_environment if trainer.local_rank else None  # type: ignore[attr-defined]
    return stop._replace(
        code=0 if isinstance(environment, LightningEnvironment) else stop.code,
        step=trainer.global_step,
        checkpoint=last.path if saved else None,
    )


def _callback(trainer: L.Trainer, kind: type[Any]) -> Any:
    """Return the first callback of a class; None if there is none."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


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
    # A milestone is saved after its step, as all checkpoints are; Lightning advises a copy from before it.
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    # The first and the last step are logged in any case.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging")
    # Panels of validation images differ in size; W&B writes this to the root logger.
    logging.getLogger().addFilter(_wanted)


def _wanted(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Images sizes do not match")


class JobFailedError(RuntimeError):
    """A job of a sweep failed; the message gives the reason."""


def stop(code: int, message: str, error: Exception) -> NoReturn:
    """Exit with a code; in a sweep, fail only this job, so that the others still run."""
    log.error("error: %s", message)
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        raise JobFailedError(message) from error
    raise SystemExit(code) from error


def stop_early(stop: Stop) -> NoReturn:
    """Say where a run stopped and how to continue, and exit with the code of the reason.

    This ends a sweep in this process as a whole. In another process the job fails, and the sweep, which has
    started that process, ends when all its jobs have stopped.
    """
    if is_first_process():
        if stop.checkpoint is None:
            log.warning("stopped by %s at step %d; nothing was saved", stop.reason, stop.step)
        else:
            log.warning(
                "stopped by %s after step %d; saved %s; continue with: %s",
                *(stop.reason, stop.step, stop.checkpoint, continuation()),
            )
    if sweep_folder() is not None:
        raise JobFailedError(f"stopped by {stop.reason}")
    raise SystemExit(stop.code)


def run(cfg: DictConfig) -> float | None:
    """Hydra's entry: train, and report errors that the user can fix in one line.

    Returns the last `val/loss`, for sweeps that minimise it.
    """
    register_resolvers()
    try:
        trained = train(cfg)
    except Stopped as stopped:
        stop_early(stopped.stop)
    except (UsageError, SettingError) as error:
        _remove_refused(cfg)
        stop(2, str(error), error)
    except (DivergedError, SavingError) as error:
        stop(1, str(error), error)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        hint = "most often the system had too little memory: lower data.num_workers; resume=last continues"
        stop(1, f"a process that loads images was killed ({' '.join(str(error).split())}); {hint}", error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = f"{error.filename}: " if error.filename else ""
        hint = "the run's checkpoints are intact; free disk space, then rerun with resume=last"
        stop(1, f"{where}{error.strerror}: {hint}", error)
    if trained.stop is not None:
        stop_early(trained.stop)
    return trained.metrics.get("val/loss")


def record_job(cfg: DictConfig) -> None:
    """Write what Hydra records of a job (`.hydra/*.yaml`); Hydra itself writes it before any check.

    Args:
        cfg: the composed configuration, not resolved.
    """
    if not HydraConfig.initialized() or not is_first_process():
        return
    job = HydraConfig.get()
    if job.output_subdir is not None:  # by the user: Hydra has written it
        return
    folder = Path(job.runtime.output_dir) / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"config": cfg, "hydra": HydraConfig.instance().cfg, "overrides": job.overrides.task}
    for name, content in contents.items():
        OmegaConf.save(content, folder / f"{name}.yaml")


def _remove_refused(cfg: DictConfig) -> None:
    """Remove the empty folder that Hydra made for a run that was refused."""
    if not HydraConfig.initialized() or not is_first_process():
        return
    folder = Path(HydraConfig.get().runtime.output_dir)
    top = Path(cfg.runs_dir).absolute()
    with suppress(OSError):  # not empty
        for path in (folder, *folder.parents):
            if top not in path.parents:
                break
            path.rmdir()


_command: list[str] = []
"""The words of this process's command line, as typed."""


def continuation() -> str:
    """Return the command that continues the present one after a stop; it can be pasted into a shell."""
    sweep = any(word in ("-m", "--multirun") for word in _command)
    words = [word for word in _command if not word.startswith(("resume=", "+resume=", "overwrite="))]
    # A sweep also has jobs that have not started. Under a job script the same words may start and continue.
    keyword = "auto" if sweep or "resume=auto" in _command else "last"
    return shlex.join([*words, f"resume={keyword}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry; `arguments` None: `sys.argv`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _command[:] = [*_program(arguments is None), *words]
    multirun = any(word in ("-m", "--multirun") for word in words)
    try:
        with SIGNALS.sweep() if multirun else SIGNALS:
            command_line(run, "train", arguments)
    except Stopped as stopped:  # between the jobs of a sweep, or while the configuration is composed
        log.warning("stopped by %s; continue with: %s", stopped.stop.reason, continuation())
        raise


def _program(module: bool) -> list[str]:
    """Return the words before the overrides: `glc train`, or those of `python -m` and of torchrun."""
    if not module:
        return ["glc", "train"]
    spec = sys.modules["__main__"].__spec__
    own = ["-m", "src.train" if spec is None else spec.name]
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["python", *own]
    with suppress(OSError, ValueError, IndexError):  # Linux
        started = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
        before = started[1 : started.index(own[1]) - 1]
        torchrun = ["python"] if before[0].startswith("-") else [Path(before.pop(0)).name]
        return [*torchrun, *before, *own]
    return ["torchrun", "...", *own]


if __name__ == "__main__":
    main()
