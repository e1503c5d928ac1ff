"""One process per shard, without a server: locks of the operating system, which end with the process.

POSIX locks are known to all machines of a shared file system (NFS 4, Lustre with `flock`, CephFS, GPFS). A
process that is killed, or whose machine goes down, loses its locks, so nothing is ever left claimed.
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
    """The file system has no locks, so processes cannot share work on it."""


@contextmanager
def claim(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a file for this process alone while in the context; it is made before and removed after.

    Args:
        path: the file, which nothing else opens: whoever closes it loses the lock.
        wait: until it is free. Else the context says at once whether it was.

    Raises:
        NoLocksError: there are no locks here.
        OSError: the file cannot be made.
    """
    if fcntl is None:
        raise NoLocksError(
            errno.ENOLCK, "this system has no file locks: shards need Linux or macOS", str(path)
        )
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    yield False
                    return
                if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise NoLocksError(
                        error.errno, "this file system has no locks: write to another with -o", str(path)
                    ) from error
                raise
            if not _is_still(path, descriptor):
                continue  # whoever held it has finished and removed it
            try:
                yield True
            finally:
                # While it is held: whoever waits for this one finds that it is gone, and makes another.
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
