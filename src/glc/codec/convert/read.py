"""Read untrusted weights without executing code."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor

from glc.codec.weights.mmap import open_tensors
from glc.errors import WeightsError
from glc.io.checkpoint import Checkpoint, as_checkpoint, load_safely

CONTAINERS = ("state_dict", "net", "net_g", "params_ema", "params")
"""Keys under which third-party files keep their tensors; the first match is used."""
PREFIX = "module."
"""Prefix that data-parallel training adds to each name."""
OUR_KEY = "glc"
"""Key that glc's training adds to a checkpoint."""


def _placeholder(path: str) -> type:
    """Return an empty class in place of another, without importing that one."""
    module, _, name = path.rpartition(".")
    return type(name, (), {"__module__": module, "__qualname__": name})


# Old Lightning checkpoints name the classes of their callbacks. They are replaced by these, never imported.
_PLACEHOLDERS: list[Any] = [
    _placeholder(f"{package}.callbacks.{name}")
    for package in ("pytorch_lightning", "lightning.pytorch")
    for name in (
        "model_checkpoint.ModelCheckpoint",
        "early_stopping.EarlyStopping",
        "lr_monitor.LearningRateMonitor",
    )
]


@dataclass(frozen=True)
class Source:
    """The content of a file; its tensors are read from disk when they are used."""

    path: Path
    tensors: Mapping[str, Tensor]
    inside: str = ""
    """Path of keys to the tensors in the file, and the prefix that was removed from their names."""
    checkpoint: Checkpoint | None = None
    """The open checkpoint, if the file is a training checkpoint of glc."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of a safetensors file."""

    @property
    def ours(self) -> bool:
        """Whether it is a training checkpoint of glc."""
        return self.checkpoint is not None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def open_source(source: str | Path | Checkpoint) -> Source:
    """Open a checkpoint (`torch.save`) or a safetensors file, once.

    Args:
        source: the file, or an open training checkpoint of glc.

    Raises:
        WeightsError: it is missing, is neither, is corrupt, holds no tensors, or holds objects that would run
            code.
    """
    if isinstance(source, Checkpoint):
        return Source(source.path, source.state_dict, "state_dict", source)
    path = Path(source)
    if not path.exists():
        raise WeightsError(f"{path}: no such file")
    if not path.is_file():
        raise WeightsError(f"{path}: not a file")
    with path.open("rb") as file:
        safetensors = _is_safetensors(path, file.read(9))
        content = None if safetensors else _load(file, path)
    if safetensors:
        metadata, tensors, _ = open_tensors(path, mapped=False)
        return Source(path, tensors, metadata=metadata)
    if isinstance(content, Mapping) and isinstance(content.get(OUR_KEY), Mapping):
        return open_source(as_checkpoint(path, content))
    tensors, inside = _unwrap(content)
    if not tensors:
        raise WeightsError(f"{path}: does not hold named tensors")
    return Source(path, tensors, inside)


def _is_safetensors(path: Path, start: bytes) -> bool:
    """Whether a file starts with eight bytes of length, then JSON. Pickles and zip archives do not."""
    return path.suffix == ".safetensors" or (len(start) == 9 and start[8:] == b"{" and start[:2] != b"PK")


def _load(file: BinaryIO, path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_PLACEHOLDERS):
            return load_safely(file, path)
    except WeightsError:
        raise
    except UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error))) from error
    except Exception as error:  # a corrupt file may raise any error
        reason = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
        raise WeightsError(f"{path}: not a checkpoint, or corrupt ({reason})") from error


def _refusal(path: Path, reason: str) -> str:
    named = re.search(r"GLOBAL (?:instruction )?([\w.]+)", reason)
    if named is None:
        return f"{path}: not a checkpoint, or it holds more than tensors and plain values"
    return (
        f"{path}: cannot be read safely as a checkpoint: reading it would run {named[1]}; nothing was run. "
        "If you trust its author, extract the tensors on an isolated machine: "
        "c = torch.load(FILE, map_location='cpu', weights_only=False); "
        "torch.save({'state_dict': c['state_dict']}, NEW)"
    )


def _unwrap(content: Any) -> tuple[dict[str, Tensor], str]:
    """Return the named tensors within nested dictionaries, and the path of keys to them."""
    found: list[str] = []
    while isinstance(content, Mapping):
        inner = next((key for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        found.append(inner)
        content = content[inner]
    named = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): value for name, value in named if isinstance(value, Tensor)}
    if tensors and all(name.startswith(PREFIX) for name in tensors):
        tensors = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
        found.append(f"{PREFIX}*")
    return tensors, " > ".join(found)
