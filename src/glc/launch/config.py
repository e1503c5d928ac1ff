"""The folder of the configuration, its resolvers, and the error for invalid settings."""

import os
from importlib.resources import files
from pathlib import Path


class UsageError(ValueError):
    """The configuration cannot be run; the message says what to change."""


def conf_folder() -> Path:
    """Return the folder of the configuration: `glc/conf` in an installed wheel, `conf` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


CONF = conf_folder()


def folder_of(source: str) -> Path | None:
    """Return the folder of an entry of `hydra.searchpath`: a path, `file://PATH` or `pkg://PACKAGE`."""
    scheme, found, rest = source.partition("://")
    if not found or scheme == "file":
        return Path(rest if found else source)
    try:
        return Path(str(files(rest.replace("/", "."))))
    except (ImportError, ValueError):
        return None  # Hydra warns of it


def per_device(batch: int, devices: int | str, num_nodes: int, accumulate: int) -> int:
    """Return the images per device and forward pass for a total batch size.

    Raises:
        ValueError: the batch is not divisible, or the number of devices is unknown.
    """
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(
            f"trainer.devices={devices}: unknown number of devices; give a number, to divide batch={batch}, "
            "or set data.batch_size"
        )
    divisor = devices * num_nodes * accumulate
    if divisor < 1 or batch % divisor:
        raise ValueError(
            f"batch={batch}: not divisible by trainer.devices={devices} x trainer.num_nodes={num_nodes} "
            f"x stage.accumulate={accumulate}; change one of them, or set data.batch_size"
        )
    return batch // divisor


def total_steps(max_steps: int, max_epochs: int | None, epoch_batches: int | None, accumulate: int) -> int:
    """Return the steps of a training run, which ends at the first of its limits.

    Args:
        max_steps: limit in steps; -1: none.
        max_epochs: limit in epochs; -1 or null: none.
        epoch_batches: batches of an epoch; null: unknown.
        accumulate: batches per step.

    Raises:
        ValueError: there is no limit, or only one in epochs of unknown length.
    """
    by_epochs = max_epochs * -(-epoch_batches // accumulate) if epoch_batches and max_epochs else -1
    limits = [limit for limit in (max_steps, by_epochs) if limit > 0]
    if not limits:
        raise ValueError(
            f"trainer.max_steps={max_steps}: the schedule needs a length; give trainer.max_steps, or "
            "trainer.max_epochs with data.epoch_batches, or stage.schedule.total"
        )
    return min(limits)


def output_dir(otherwise: str) -> str:
    """Return Hydra's output folder of this job, or `otherwise` if Hydra runs no job, as in a notebook."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if not HydraConfig.initialized():
        return otherwise
    runtime = HydraConfig.get().runtime
    return otherwise if OmegaConf.is_missing(runtime, "output_dir") else str(runtime.output_dir)


def run_dir(folder: str) -> str:
    """Return a run's folder: below `folder` for a run that an agent of a W&B sweep started, else `folder`.

    The agent gives its runs no other name than their id. A run that it starts again has the same id.
    """
    identity = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return os.path.join(folder, identity) if identity else folder
