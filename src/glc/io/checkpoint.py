"""Training checkpoints: written with a SHA-256, opened once, read without executing code.

`torch.save` writes a zip archive, which may end in a comment. glc writes the comment `sha256:` and 64
hexadecimal digits: the checksum of the file without the comment. Zip tools and `torch.load` ignore it, and
the checkpoint remains a single file, which can be renamed atomically.
"""

import functools
import hashlib
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from torch import Tensor

from glc.errors import WeightsError
from glc.io.atomic import replacing

CHECKPOINT_FORMAT = 1
"""Version of the entry `glc` that training adds to a checkpoint."""

_MARK = b"sha256:"
_DIGITS = 64
_COMMENT = len(_MARK) + _DIGITS
_CHUNK = 1 << 22

# Modules named in settings of version 0.1, and their classes' present modules.
_MOVED = {
    "glc.codec.export": "glc.codec.weights.export",
    "glc.losses.augment": "glc.losses.perceptual",
    "glc.losses.vq": "glc.losses.latent",
    "glc.training.callbacks.average": "glc.training.callbacks.ema",
    "glc.training.callbacks.checkpoint": "glc.training.checkpoints",
    "glc.training.callbacks.histograms": "glc.training.callbacks.codebook",
    "glc.training.callbacks.panel": "glc.training.callbacks.media",
    "glc.training.callbacks.time_limit": "glc.training.stopping",
    "glc.training.saving": "glc.training.checkpoints",
    "glc.training.stage": "glc.training.stages.base",
    **{
        f"glc.training.{name}": f"glc.training.stages.{name}"
        for name in ("vqvae", "transform", "joint", "restoration", "stylization")
    },
}
# Classes that have another name since version 0.1.
_RENAMED = {
    "glc.losses.perceptual.RandomViews": "glc.losses.perceptual.RandomAugmentation",
    "glc.training.callbacks.codebook.CodebookCare": "glc.training.callbacks.codebook.CodebookRestart",
    "glc.training.callbacks.ema.MovingAverage": "glc.training.callbacks.ema.EMA",
    "glc.training.checkpoints.SealedCheckpointIO": "glc.training.checkpoints.ChecksumCheckpointIO",
    "glc.training.stopping.TimeLimit": "glc.training.stopping.StopAfterStep",
}
# Their arguments, by present class, that have another name since version 0.1; None: the section `stage`.
_ARGUMENTS = {
    None: {"unquantized": "quantizer_bypass"},
    "glc.losses.reconstruction.load_perceptual": {"views": "augment"},
    "glc.training.callbacks.codebook.CodebookRestart": {"revive_every": "restart_every"},
    "glc.training.stages.vqvae.VQVAEStage": {"unquantized": "quantizer_bypass"},
}


@dataclass(frozen=True)
class Checkpoint:
    """An open training checkpoint; its tensors are read from the file when they are used."""

    path: Path
    content: dict[str, Any]
    """The complete content of the file."""
    settings: dict[str, Any]
    """The run's resolved configuration, as plain values; classes and keys have their present names."""

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights; the EMA weights if the run kept them."""
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
        source: the file; an open checkpoint is returned unchanged.

    Raises:
        WeightsError: the file is missing, does not match its checksum, is not a checkpoint of glc's training,
            or has a newer format.
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
        raise WeightsError(f"{path}: cannot be read safely as a checkpoint ({reason})") from error
    return as_checkpoint(path, content)


def load_safely(file: BinaryIO, path: Path) -> Any:
    """Load an open `torch.save` file, written by any program, after verifying its checksum.

    Tensors are memory-mapped, copy-on-write: unused tensors take no memory.

    Args:
        file: the file, at any position.

    Raises:
        WeightsError: the file does not match its checksum.
        Exception: any error of `torch.load(weights_only=True)` for a file that it cannot read.
    """
    verify(file, path)
    # By descriptor where possible: the path may have been replaced since the checksum was verified.
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

    For long-lived tensors: the file may be on a network drive, and Windows cannot replace a mapped file.
    """
    if isinstance(content, Tensor):
        content.set_(content.clone())  # type: ignore[call-overload]
    elif isinstance(content, dict | list | tuple):
        for item in content.values() if isinstance(content, dict) else content:
            copy_to_memory(item)


def as_checkpoint(path: Path, content: Any) -> Checkpoint:
    """Return the content of a file as a training checkpoint.

    Raises:
        WeightsError: it is not one, or has a newer format.
    """
    ours = content.get("glc") if isinstance(content, dict) else None
    if not isinstance(ours, dict) or not isinstance(newest := ours.get("format"), int):
        raise WeightsError(f"{path}: not a checkpoint of glc's training")
    if newest > CHECKPOINT_FORMAT:
        raise WeightsError(
            f"{path}: format {newest} is newer than this glc reads ({CHECKPOINT_FORMAT}); update glc"
        )
    settings = ours.get("recipe")
    if not isinstance(settings, dict) or not isinstance(content.get("state_dict"), dict):
        raise WeightsError(f"{path}: corrupt checkpoint: its settings or weights are missing")
    present = _with_present_names(settings)
    if isinstance(present.get("stage"), dict):
        present["stage"] = _with_present_keys(present["stage"], _ARGUMENTS[None])
    return Checkpoint(path, content, present)


def label(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the value of a training checkpoint's key `glc`.

    Args:
        settings: the run's resolved configuration, as plain values. It keeps the key of version 0.1,
            `recipe`.
    """
    return {"format": CHECKPOINT_FORMAT, "recipe": settings, **_source()}


@functools.cache
def _source() -> dict[str, str]:
    """Return `version` of glc and, in a checkout, `commit`, with `-dirty` for uncommitted changes."""
    package = Path(__file__).resolve().parents[1]
    found = {"version": sys.modules["glc"].__version__}  # loaded with this module, which may not import it
    root = package.parents[1]
    # Not that of a repository in which glc happens to be installed.
    if package.parent.name == "src" and (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            found["commit"] = done.stdout.strip()
    return found


def _with_present_names(node: Any) -> Any:
    if isinstance(node, dict):
        present = {key: _present(item) if key == "_target_" else _with_present_names(item)
                   for key, item in node.items()}  # fmt: skip
        target = present.get("_target_")
        return _with_present_keys(present, _ARGUMENTS.get(target, {}) if isinstance(target, str) else {})
    return [_with_present_names(item) for item in node] if isinstance(node, list) else node


def _present(target: Any) -> Any:
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    moved = f"{_MOVED[module]}.{name}" if module in _MOVED else target
    return _RENAMED.get(moved, moved) if isinstance(moved, str) else moved


def _with_present_keys(node: dict[str, Any], renamed: dict[str, str]) -> dict[str, Any]:
    return {renamed.get(key, key): item for key, item in node.items()}


class _Hashing:
    """Hashes the bytes written to a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write, and keep the OSError of a failure: torch raises its own error in its place."""
        try:
            self.file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()


def save_checkpoint(content: Any, path: str | Path) -> None:
    """Save with `torch.save` and a checksum, atomically and durably.

    Raises:
        OSError: the write failed (for example, the disk is full); the file at `path` is unchanged.
    """
    with replacing(path, fsync=True, sole_writer=True) as partial, open(partial, "wb") as file:
        hashing = _Hashing(file)
        try:
            torch.save(content, hashing)  # type: ignore[arg-type]
        except RuntimeError:
            if hashing.failure is not None:
                raise hashing.failure from None
            raise
        # The archive ends in the length of its comment: two bytes, 0 so far.
        file.seek(-2, os.SEEK_END)
        file.write(_COMMENT.to_bytes(2, "little") + _MARK + hashing.sha256.hexdigest().encode())


def verify(file: BinaryIO, path: str | Path) -> bool:
    """Verify an open file against the checksum in it.

    Args:
        file: the file, at any position.

    Returns:
        Whether it has a checksum. Files of other programs have none. A truncated file has lost it, but is not
        a valid zip archive either, so that reading it fails.

    Raises:
        WeightsError: the checksum does not match: the file is corrupt.
        OSError: the file cannot be read.
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
            f"{path}: corrupt checkpoint: checksum mismatch (interrupted write or failing disk)"
        )
    return True
