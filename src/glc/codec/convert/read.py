"""Reading weights that may come from anywhere, without executing anything in them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glc.errors import WeightsError
from glc.io.checkpoint import Checkpoint, as_checkpoint, load_safely

CONTAINERS = ("state_dict", "net", "net_g", "params_ema", "params")
"""Keys under which published files keep their tensors; of several in one place, the first."""
PREFIX = "module."
"""What data-parallel training puts before each name."""
OUR_KEY = "glc"
"""Key that glc's training adds to a checkpoint."""


def _placeholder(path: str) -> type:
    """Return an empty class that stands for another, which is not imported."""
    module, _, name = path.rpartition(".")
    return type(name, (), {"__module__": module, "__qualname__": name})


# Old Lightning checkpoints name the classes of their callbacks. The names are looked up here, never imported.
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
    """What a file holds; tensors of it are read from disk when they are used."""

    path: Path
    tensors: Mapping[str, Tensor]
    inside: str = ""
    """Where in the file the tensors were, and what was taken off their names."""
    checkpoint: Checkpoint | None = None
    """The file, opened, where it is a checkpoint of glc's training."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of a safetensors file."""

    @property
    def ours(self) -> bool:
        """Whether it is a checkpoint of glc's training."""
        return self.checkpoint is not None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def open_source(source: str | Path | Checkpoint) -> Source:
    """Open a checkpoint (`torch.save`) or a safetensors file, once.

    Args:
        source: the file, or a checkpoint of glc's training that is already open.

    Raises:
        WeightsError: when it is missing, is neither, is damaged, holds no tensors, or holds objects that
            would have to be executed.
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
        return _open_safetensors(path)
    if isinstance(content, Mapping) and isinstance(content.get(OUR_KEY), Mapping):
        return open_source(as_checkpoint(path, content))
    tensors, inside = _unwrap(content)
    if not tensors:
        raise WeightsError(f"{path}: holds no named tensors")
    return Source(path, tensors, inside)


def _is_safetensors(path: Path, start: bytes) -> bool:
    """Whether a file begins like one: eight bytes of length, then JSON. Pickles and archives do not."""
    return path.suffix == ".safetensors" or (len(start) == 9 and start[8:] == b"{" and start[:2] != b"PK")


def _open_safetensors(path: Path) -> Source:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Source(path, tensors, metadata=file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a safetensors file, or a damaged one ({error})") from error


def _load(file: BinaryIO, path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_PLACEHOLDERS):
            return load_safely(file, path)
    except WeightsError:
        raise
    except UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error))) from error
    except Exception as error:  # a damaged file may fail in any way
        reason = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
        raise WeightsError(f"{path}: not a checkpoint, or a damaged one ({reason})") from error


def _refusal(path: Path, reason: str) -> str:
    named = re.search(r"GLOBAL (?:instruction )?([\w.]+)", reason)
    if named is None:
        return f"{path}: not a checkpoint, or one that holds more than tensors and plain values"
    return (
        f"{path}: not a checkpoint that can be read safely: it names {named[1]}, which reading it would "
        "run; nothing was run. If you trust whoever made the file, keep its tensors alone, on a machine with "
        "nothing of value: c = torch.load(FILE, map_location='cpu', weights_only=False); "
        "torch.save({'state_dict': c['state_dict']}, NEW)"
    )


def _unwrap(content: Any) -> tuple[dict[str, Tensor], str]:
    """Return the named tensors within nested dictionaries, and a note of where they were."""
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
