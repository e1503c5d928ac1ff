"""Atomic file writes: a reader sees the old file or the new one, never a part of either.

This is the only place in the package that renames a finished file into place.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glc.errors import WeightsError
from glc.io.names import encode_text


def check_destination(destination: Path, source: Path, force: bool) -> None:
    """Check, before any work, that a file may be written.

    Raises:
        FileExistsError: it exists and `force` is not set.
        WeightsError: it is a folder, or the source itself.
    """
    if destination.is_dir():
        raise WeightsError(f"{destination}: is a folder; give a file name")
    if destination.exists() and source.exists() and destination.samefile(source):
        raise WeightsError(f"{destination}: is the source file; give another output name")
    if destination.exists() and not force:
        raise FileExistsError(f"{destination}: exists; replace it with --force")


@contextmanager
def replacing(
    path: str | Path, *, fsync: bool = False, overwrite: bool = True, sole_writer: bool = False
) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there replaces `path` when the block ends.

    Missing folders are created. A symbolic link is followed: its target is replaced. After an error, `path`
    is unchanged and the temporary file is removed. Permissions follow the process's umask (safetensors alone
    would allow only the owner).

    Args:
        fsync: sync the content, then the rename, to disk: for files that cannot be regenerated.
        overwrite: whether an existing file may be replaced.
        sole_writer: no other process writes this file. The temporary name is then fixed, so that a new
            attempt overwrites the file of a killed process. Otherwise the name is random.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        OSError: the file cannot be written; the error names `path`, not the temporary file.
    """
    place = Path(os.path.realpath(path))
    # A short name: the destination's may already have the maximum length.
    name = f".{place.name}.part" if sole_writer else f".glc-{os.urandom(8).hex()}.part"
    partial = place.with_name(name)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)
        if not overwrite and os.path.lexists(place):
            raise FileExistsError(errno.EEXIST, "exists; replace it with --force", str(path))
        publish(partial, place, fsync=fsync)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(partial), partial, str(place)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def publish(partial: Path, path: Path, *, fsync: bool = False) -> None:
    """Rename a complete file to its final name, replacing an existing file. Both are on one file system.

    Raises:
        OSError: the rename failed; the error names `path`.
    """
    try:
        if fsync:
            _sync(partial)
        os.replace(partial, path)
        if fsync:
            _sync(path.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error


def create(path: Path, data: bytes) -> bool:
    """Write a file that must not exist, synced to disk; of several writers one wins. Its folder must exist.

    Returns:
        Whether this writer has written it.

    Raises:
        OSError: it cannot be written; also where its folder was removed meanwhile.
    """
    part = path.with_name(f".glc-{secrets.token_hex(8)}.part")
    try:
        part.write_bytes(data)
        _sync(part)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except PermissionError:  # a file system without hard links: not safe against a second writer
            if path.exists():
                return False
            os.replace(part, path)
        _sync(path.parent)
        return True
    finally:
        part.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder in one step: from then on no file can be created in it or moved out of it."""
    gone = path.with_name(f"{path.name}.{secrets.token_hex(4)}.old")
    with suppress(FileNotFoundError):
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def write_bytes(path: str | Path, data: bytes, *, fsync: bool = False, overwrite: bool = True) -> None:
    """Write a file atomically; see `replacing` for the arguments and the errors."""
    with replacing(path, fsync=fsync, overwrite=overwrite) as partial:
        partial.write_bytes(data)


def write_text(path: str | Path, text: str, *, fsync: bool = False, overwrite: bool = True) -> None:
    """Write a UTF-8 file atomically; names in it as in `encode_text`."""
    write_bytes(path, encode_text(text), fsync=fsync, overwrite=overwrite)


def _sync(path: Path) -> None:
    """Sync a file's content, or a folder's entries, to disk; folders on POSIX only."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
