"""File locks that need no server and end with the process that holds them.

POSIX locks are seen by all machines that share a file system (NFS 4, Lustre with `flock`, CephFS, GPFS). A
process that is killed, or whose machine goes down, loses its locks, so no lock is ever left behind.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class NoLocksError(OSError):
    """The system or file system does not support file locks, so processes cannot share work on it."""


@contextmanager
def lock(path: Path, *, wait: bool = False, required: bool = True) -> Iterator[bool]:
    """Hold a lock file while in the context; the file is made before and removed after.

    Args:
        path: the lock file. Nothing else may open it: whoever closes it loses the lock.
        wait: wait until the lock is free. Otherwise the context yields at once whether it was.
        required: refuse to work where the system or the file system has no locks. Otherwise the context
            yields True there.

    Raises:
        NoLocksError: file locks are not supported and `required` is set.
        OSError: the file cannot be created.
    """
    if fcntl is None:
        if required:
            raise NoLocksError(
                errno.ENOLCK, "file locks are not supported on this system; use Linux or macOS", str(path)
            )
        yield True
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    yield False
                    return
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                if required:
                    raise NoLocksError(
                        error.errno,
                        "file locks are not supported on this file system; write to another one",
                        str(path),
                    ) from error
            if not _is_still(path, descriptor):
                continue  # the holder has finished and removed the file
            try:
                yield True
            finally:
                # Removed while it is held: a process that waited for this file sees that it is gone.
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
