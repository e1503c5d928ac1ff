"""Shards, and a coder that needs no network."""

import io
import os
import signal
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glc.jobs.run import run
from glc.jobs.tar_shards import find_shards
from glc.jobs.worker import Coded, Task

SETTINGS = {"command": "reverse"}


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a shard as anyone would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def read_tar(path: Path) -> dict[str, bytes]:
    """Return the files in a shard by name."""
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


class Reverser:
    """Turns `.txt` files around; those that say so fail, are slow, or end the process."""

    def accepts(self, name: str) -> bool:
        """Whether it is a text."""
        return name.endswith(".txt")

    def code(self, data: bytes, name: str) -> Coded:
        """Turn a text around."""
        if data == b"bad":
            raise ValueError(f"{name}: says bad")
        if data == b"kill" and "GLC_TEST_KILL" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"slow":
            time.sleep(0.2)
        return Coded([("rev", data[::-1])], 10, len(data))


def make_reverser(here: int) -> Reverser:
    """Return a coder, as each process makes its own."""
    return Reverser()


def code(shards: Path, out: Path, keep: bool = True, **options: Any) -> dict[str, Any]:
    """Turn all texts in shards around; the totals."""
    task = Task(find_shards([str(shards)]), out, keep)
    return run(task, SETTINGS, make_reverser, quiet=True, **options)


def contents(out: Path) -> dict[str, bytes]:
    """Return the files in a folder by name."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
