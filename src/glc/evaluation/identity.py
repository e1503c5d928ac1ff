"""What decides the numbers of an evaluation, for the record and to tell one from another."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import glc
from glc.codec.codec import choose_device
from glc.evaluation.codecs.base import ImageCodec, Setting

_PACKAGES = ("torchmetrics", "torchvision", "lpips", "numpy", "pillow")


def describe(
    codec: ImageCodec,
    data: Mapping[str, Any],
    protocol: Mapping[str, Any],
    measured: Sequence[str],
    device: str,
    threads: int,
    seed: int,
) -> dict[str, Any]:
    """Return all of it, in JSON's types.

    Args:
        codec: under test.
        data: what is measured.
        protocol: how the metrics are configured.
        measured: names of the metrics that could be made.
        device: where the scores are computed.
        threads: of each process.
        seed: of all that is drawn.
    """
    return {
        "codec": {
            "name": codec.name,
            "kind": codec.kind,
            "fingerprint": codec.fingerprint,
            "versions": dict(codec.versions()),
            "options": dict(codec.options()),
        },
        "settings": as_mapping(codec.settings),
        "data": dict(data),
        "protocol": {
            **dict(protocol),
            "measured": list(measured),
            "device": device.partition(":")[0],
            "threads": threads,
        },
        "seed": seed,
        "versions": {
            "glc": glc.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        | {name: found for name in _PACKAGES if (found := _version(name))},
    }


def as_mapping(settings: Sequence[Setting]) -> list[Mapping[str, Any]]:
    """Return settings as the summary has them."""
    return [{"label": setting.label, **setting.as_dict()} for setting in settings]


def check_counts(processes: int, threads: int) -> None:
    """Raise ValueError unless there is at least one process, with at least one thread."""
    if processes < 1 or threads < 1:
        raise ValueError(f"processes={processes} and threads={threads} must be positive whole numbers")


def choose_devices(device: str | Sequence[str], several: bool) -> list[str]:
    """Return the devices that processes take in turn.

    Args:
        device: `auto`, `cpu`, `cuda`, or several of them.
        several: whether there are several processes, which use all GPUs where none is named.

    Raises:
        ValueError: there is no such device.
    """
    names = [device] if isinstance(device, str) else list(device)
    if names == ["auto"] and torch.cuda.is_available():
        names = ["cuda"]
    if names == ["cuda"] and several and torch.cuda.is_available():
        names = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    return [str(choose_device(name)) for name in names]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
