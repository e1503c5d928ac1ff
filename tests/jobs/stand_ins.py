"""Tasks of milliseconds; at module level, so that worker processes find them."""

from __future__ import annotations

import errno
import io
import os
import signal
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from glc.jobs.engines import DeferredError, Engine, Report
from glc.jobs.run import Task
from glc.jobs.tar_shards import find_shards
from glc.jobs.worker import FileProcessor, MakeProcessor, Processed, run_shards

SETTINGS = {"command": "reverse"}


class Killed(BaseException):
    """A kill, which no code catches."""


class KillAt:
    """Wraps functions; before and after each call is a step, and the given one raises `Killed` (0: never)."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts its calls."""

        def call(*args: Any, **options: Any) -> Any:
            self._step()
            result = function(*args, **options)
            self._step()
            return result

        return call

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a shard as anyone would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def read_tar(path: Path) -> dict[str, bytes]:
    """Return the files in a shard by name."""
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


@dataclass
class Reverser(FileProcessor):
    """Reverses `.txt` files; a text may ask to fail, to be slow, or to end the process."""

    def accepts(self, name: str) -> bool:
        """Whether it is a text."""
        return name.endswith(".txt")

    def process_file(self, data: bytes, name: str) -> Processed:
        """Reverse a text."""
        if data == b"bad":
            raise ValueError(f"{name}: says bad")
        if data == b"kill" and "GLC_TEST_KILL" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"slow":
            time.sleep(0.2)
        return Processed([("rev", data[::-1])], 10, len(data))


def make_reverser(keep: bool, local_rank: int) -> Reverser:
    """Return a processor, as each process makes its own."""
    return Reverser(keep=keep)


def code(
    shards: Path | str,
    out: Path | str,
    keep: bool = True,
    settings: Mapping[str, Any] = SETTINGS,
    make: MakeProcessor | None = None,
    engine: Engine = Engine(),  # noqa: B008 (immutable)
    **options: Any,
) -> dict[str, Any]:
    """Reverse all texts in shards; the totals."""
    found = find_shards([str(shards)])
    make = make or partial(make_reverser, keep)
    return run_shards(found, out, {**settings, "keep": keep}, make, engine, quiet=True, **options)[1]


def contents(out: Path) -> dict[str, bytes]:
    """Return the files in a folder by name."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


class NumberTask(Task):
    """Writes a file for each number; each process notes in `start-*` that it began."""

    def __init__(self, folder: Path, items: Sequence[int]) -> None:
        super().__init__(str(folder), items, partial(NumberWorker, folder), "numbers", "number")
        self.folder = folder
        self.recorded: list[tuple[int, str]] = []

    def outcome(self, item: int) -> str | None:
        path = self.folder / str(item)
        return path.read_text() if path.exists() else None

    def record(self, item: int, outcome: str) -> None:
        self.recorded.append((item, outcome))


class NumberWorker:
    """Writes a number's square. Files beside it say what befalls an item: `kill-3` a kill at number 3."""

    def __init__(self, folder: Path, local_rank: int) -> None:
        self.folder, self.local_rank = folder, local_rank
        (folder / f"start-{local_rank}-{os.getpid()}").touch()

    def run_one(self, item: int, report: Report) -> str:
        report(1)

        def befalls(kind: str) -> bool:
            once, always = self.folder / f"{kind}-once-{item}", self.folder / f"{kind}-{item}"
            if once.exists():
                once.unlink()
                return True
            return always.exists()

        if befalls("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if befalls("error"):
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder / str(item)))
        if befalls("defer"):
            raise DeferredError(f"{item}: not enough memory")
        (self.folder / str(item)).write_text(str(item**2))
        return str(item**2)
