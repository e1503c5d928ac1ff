"""POSIX file locks: keep a second process from training or evaluating into the same folder.

They need no server and are released when their process ends, so no stale lock remains. They are a service to
users, not a guarantee: where the system or the file system has no locks, nobody is kept out.
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


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Hold a lock file within the context; yield whether it was acquired, True where locks are not supported.

    Args:
        path: the lock file, created before and removed after. Nothing else may open it: a process that closes
            any descriptor of it loses the lock.

    Raises:
        OSError: the file cannot be created.
    """
    if fcntl is None:
        yield True
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                yield False
                return
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        if not path.exists() or not os.path.samestat(os.stat(path), os.fstat(descriptor)):
            yield False  # its holder has just removed it
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
