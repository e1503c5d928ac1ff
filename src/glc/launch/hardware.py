"""Check of the devices that a training run asks for."""

from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from glc.launch.config import UsageError


def check_devices(trainer: DictConfig) -> None:
    """Check that this machine has the GPUs of a trainer's configuration.

    Raises:
        UsageError: it has not.
    """
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", 1)
    there = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and there == 0 and not torch.backends.mps.is_available():
        raise UsageError(
            f"trainer.accelerator={accelerator}: PyTorch finds no GPU on this machine; give cpu or auto"
        )
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise UsageError("trainer.accelerator=mps: not on this machine; give cpu or auto")
    on_gpus = accelerator in ("gpu", "cuda") or (accelerator == "auto" and there > 0)
    if on_gpus and there and _needed(devices) > there:
        raise UsageError(
            f"trainer.devices={devices}: PyTorch finds {there} on this machine; give at most {there}"
        )


def _needed(devices: Any) -> int:
    if isinstance(devices, int):
        return devices
    return max(devices) + 1 if isinstance(devices, list | ListConfig) and devices else 1
