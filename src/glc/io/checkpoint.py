"""A checksum inside a checkpoint, so that a torn or rotten one is known before it is used.

`torch.save` writes a zip archive, and such an archive may end in a comment. A sealed checkpoint's comment is
`sha256:` and 64 hexadecimal digits, of all bytes as they were before the comment was added. Zip tools and
`torch.load` read the file as before; one file stays one file, so it can be renamed in one step.

Reading training checkpoints, which may come from anywhere, without executing anything in them.
"""

import hashlib
import os
from pathlib import Path
from typing import IO, Any

import torch

from glc.errors import WeightsError

_MARK = b"sha256:"
_DIGITS = 64
_COMMENT = len(_MARK) + _DIGITS
_CHUNK = 1 << 22


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


def save_sealed(content: Any, path: str | Path) -> None:
    """Write what `torch.save` can write with its checksum, whole or not at all.

    It is written under the name `.NAME.part` beside its place, brought to the disk and renamed. That name is
    always the same: what a killed process left there is written over by the next one.

    Raises:
        OSError: it cannot be written (the disk is full, say); what was at `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        with open(partial, "wb") as file:
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
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        # Not when the process is killed, of course; then the next one writes over it.
        partial.unlink(missing_ok=True)
        if error.filename in (None, str(partial), partial):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, where folders can be synced."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_seal(path: str | Path) -> bool:
    """Read a file once and compare it with the checksum in it.

    Returns:
        Whether it has one. A file of another maker has none, and one that was cut short has lost it: that one
        is no archive any more, which its reader will say.

    Raises:
        WeightsError: the checksum is another one: the file is torn or was changed.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
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


CHECKPOINT_FORMAT = 1
"""Version of what glc's training adds to a checkpoint under the key `glc`."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint without executing anything in it.

    Raises:
        WeightsError: when it is missing, has another checksum than it states, is no checkpoint of glc's
            training, or is of a newer format.
    """
    try:
        check_seal(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such checkpoint") from None
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"{path}: not a checkpoint that can be read safely ({error})") from error
    ours = checkpoint.get("glc") if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or not isinstance(newest := ours.get("format"), int):
        raise WeightsError(f"{path}: not a checkpoint of glc's training")
    if newest > CHECKPOINT_FORMAT:
        raise WeightsError(f"{path}: format {newest} is newer than this glc reads ({CHECKPOINT_FORMAT})")
    if not isinstance(ours.get("recipe"), dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise WeightsError(f"{path}: a damaged checkpoint, without its recipe or its weights")
    return checkpoint
