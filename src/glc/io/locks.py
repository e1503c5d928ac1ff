"""POSIX file locks. They need no server and are released when their process ends.

All machines that share a file system see them (NFS 4, Lustre with `flock`, CephFS, GPFS). A killed process
and a crashed machine lose their locks, so no stale lock remains.
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
    """Hold a lock file within the context; yield whether the lock was acquired.

    The file is created before and removed after.

    Args:
        path: the lock file. Nothing else may open it: a process that closes any descriptor of it loses the
            lock.
        wait: wait until the lock is free. Otherwise yield False at once if it is held.
        required: raise if the system or the file system does not support locks. Otherwise yield True there.

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
                continue  # the holder finished and removed the file
            try:
                yield True
            finally:
                # Removed while held: a waiting process then sees that its descriptor is stale.
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
