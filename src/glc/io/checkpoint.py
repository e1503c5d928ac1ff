"""Checkpoints of glc's training: written with a checksum, opened once, read without executing anything.

`torch.save` writes a zip archive, and such an archive may end in a comment. A sealed checkpoint's comment is
`sha256:` and 64 hexadecimal digits, of all bytes as they were before the comment was added. Zip tools and
`torch.load` read the file as before; one file stays one file, so it can be renamed in one step.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from torch import Tensor

from glc.errors import WeightsError
from glc.io.atomic import replacing

CHECKPOINT_FORMAT = 1
"""Version of what glc's training adds to a checkpoint under the key `glc`."""

_MARK = b"sha256:"
_DIGITS = 64
_COMMENT = len(_MARK) + _DIGITS
_CHUNK = 1 << 22

# Modules that settings of version 0.1 name, and where their classes are now.
_MOVED = {
    "glc.codec.export": "glc.codec.weights.export",
    "glc.losses.vq": "glc.losses.latent",
    "glc.training.callbacks.average": "glc.training.callbacks.ema",
    "glc.training.callbacks.checkpoint": "glc.training.checkpoints",
    "glc.training.callbacks.histograms": "glc.training.callbacks.codebook",
    "glc.training.callbacks.panel": "glc.training.callbacks.media",
    "glc.training.callbacks.time_limit": "glc.training.checkpoints",
    "glc.training.saving": "glc.training.checkpoints",
    "glc.training.stage": "glc.training.stages.base",
    **{
        f"glc.training.{name}": f"glc.training.stages.{name}"
        for name in ("vqvae", "transform", "joint", "restoration", "stylization")
    },
}


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint of glc's training; its tensors are read from the file when they are used."""

    path: Path
    content: dict[str, Any]
    """All that the file holds."""
    settings: dict[str, Any]
    """The run's resolved configuration, as plain values; classes that moved have their present names."""

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights; the EMA weights where the run kept them."""
        found: dict[str, Tensor] = self.content["state_dict"]
        return found

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.content.get("global_step", 0))

    @property
    def stage(self) -> str | None:
        """Name of the stage that was trained."""
        found = self.settings.get("stage")
        return found.get("name") if isinstance(found, dict) else None


def open_checkpoint(source: str | Path | Checkpoint) -> Checkpoint:
    """Open a training checkpoint: verify its checksum, then load it from the same open file.

    Args:
        source: the file; a checkpoint that is already open is returned as it is.

    Raises:
        WeightsError: when the file is missing, does not match its checksum, is not a checkpoint of glc's
            training, or has a newer format.
    """
    if isinstance(source, Checkpoint):
        return source
    path = Path(source)
    try:
        with path.open("rb") as file:
            content = load_safely(file, path)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such checkpoint") from None
    except WeightsError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path}: not a checkpoint that can be read safely ({reason})") from error
    return as_checkpoint(path, content)


def load_safely(file: BinaryIO, path: Path) -> Any:
    """Return what `torch.save` wrote to an open file, of whatever program, after verifying its checksum.

    Tensors are memory-mapped, copy-on-write: what is not used takes no memory.

    Args:
        file: the file, at any position.
        path: its name, for messages.

    Raises:
        WeightsError: the file states another checksum than it has.
        Exception: whatever `torch.load(weights_only=True)` raises for a file that it cannot read.
    """
    verify(file, path)
    # By its descriptor, where the system can: the name may be that of another file by now.
    descriptor = f"/dev/fd/{file.fileno()}"
    name = descriptor if os.path.exists(descriptor) else path
    try:
        return torch.load(name, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)  # written before torch 1.6


@torch.no_grad()
def copy_to_memory(content: Any) -> None:
    """Copy memory-mapped tensors in nested dictionaries and lists to memory, in place.

    For what is used for long: the file may be on a network, or be replaced where that needs it unmapped.
    """
    if isinstance(content, Tensor):
        content.set_(content.clone())  # type: ignore[call-overload]
    elif isinstance(content, dict | list | tuple):
        for item in content.values() if isinstance(content, dict) else content:
            copy_to_memory(item)


def as_checkpoint(path: Path, content: Any) -> Checkpoint:
    """Check that the content of a file is that of a training checkpoint.

    Raises:
        WeightsError: when it is not, or has a newer format.
    """
    ours = content.get("glc") if isinstance(content, dict) else None
    if not isinstance(ours, dict) or not isinstance(newest := ours.get("format"), int):
        raise WeightsError(f"{path}: not a checkpoint of glc's training")
    if newest > CHECKPOINT_FORMAT:
        raise WeightsError(f"{path}: format {newest} is newer than this glc reads ({CHECKPOINT_FORMAT})")
    settings = ours.get("recipe")
    if not isinstance(settings, dict) or not isinstance(content.get("state_dict"), dict):
        raise WeightsError(f"{path}: a damaged checkpoint, without its settings or its weights")
    return Checkpoint(path, content, _with_present_names(settings))


def label(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a training checkpoint holds under the key `glc`.

    Args:
        settings: the run's resolved configuration, as plain values. Their key is the one of version 0.1.
    """
    return {"format": CHECKPOINT_FORMAT, "recipe": settings}


def _with_present_names(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _present(item) if key == "_target_" else _with_present_names(item)
                for key, item in node.items()}  # fmt: skip
    return [_with_present_names(item) for item in node] if isinstance(node, list) else node


def _present(target: Any) -> Any:
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    return f"{_MOVED[module]}.{name}" if module in _MOVED else target


class _Hashing:
    """Hashes what passes through to a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write; torch hides what goes wrong here behind an error of its own, so it is kept."""
        try:
            self.file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        """Pass on what is buffered."""
        self.file.flush()


def save_checkpoint(content: Any, path: str | Path) -> None:
    """Write what `torch.save` can write, with its checksum, atomically and durably.

    Raises:
        OSError: it cannot be written (the disk is full, say); what was at `path` is as it was.
    """
    with replacing(path, fsync=True, sole_writer=True) as partial, open(partial, "wb") as file:
        hashing = _Hashing(file)
        try:
            torch.save(content, hashing)  # type: ignore[arg-type]
        except RuntimeError:
            if hashing.failure is not None:
                raise hashing.failure from None
            raise
        # The archive ends in the length of its comment, two bytes, which is 0.
        file.seek(-2, os.SEEK_END)
        file.write(_COMMENT.to_bytes(2, "little") + _MARK + hashing.sha256.hexdigest().encode())


def verify(file: BinaryIO, path: str | Path) -> bool:
    """Read an open file once and compare it with the checksum in it.

    Args:
        file: the file, at any position.
        path: its name, for messages.

    Returns:
        Whether it has a checksum. A file of another program has none, and one that was cut short has lost it:
        that one is not a zip archive any more, which its reader will say.

    Raises:
        WeightsError: the checksum is another one: the file is truncated or was changed.
        OSError: it cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    if size < _COMMENT + 2:
        return False
    file.seek(size - _COMMENT - 2)
    end = file.read()
    comment = end[2:]
    if end[:2] != _COMMENT.to_bytes(2, "little") or not comment.startswith(_MARK):
        return False
    file.seek(0)
    sha256 = hashlib.sha256()
    rest = size - _COMMENT - 2
    while rest:
        chunk = file.read(min(_CHUNK, rest))
        if not chunk:
            break
        sha256.update(chunk)
        rest -= len(chunk)
    sha256.update(b"\0\0")
    if sha256.hexdigest().encode() != comment[len(_MARK) :]:
        raise WeightsError(
            f"{path}: damaged: its content does not have the checksum that it states "
            "(a write that was cut off, or a disk that fails)"
        )
    return True
