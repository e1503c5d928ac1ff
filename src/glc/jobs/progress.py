"""Progress of a task and its remaining time."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from glc.jobs.manifest import Folder, Source

if TYPE_CHECKING:
    from glc.jobs.run import Task

_TAIL = 1 << 16
_IN_LOGS = 60.0
"""Seconds between lines of progress if stderr is not a terminal."""


class Done(NamedTuple):
    """Finished part of a task: the amount, in its unit of progress, and the number of items."""

    amount: int
    items: int


class ShardProgress:
    """Progress of all processes on all machines, read from the state files of a folder."""

    def __init__(self, folder: Folder, shards: Sequence[Source]) -> None:
        self.folder = folder
        self._open = {shard.name: (shard, shard.size()) for shard in shards}
        self.total = sum(size for _, size in self._open.values())
        self._finished = Done(0, 0)

    def look(self) -> Done:
        """Return the current progress; the record of a finished shard is read once."""
        present = {entry.name for entry in os.scandir(self.folder.notes)}
        underway = 0
        for name, (shard, size) in list(self._open.items()):
            if f"{name}.json" in present and self.folder.record(shard) is not None:
                del self._open[name]
                self._finished = Done(self._finished.amount + size, self._finished.items + 1)
            elif f"{name}.journal" in present:
                underway += min(size, _read_so_far(self.folder.note(shard, "journal")))
        return Done(self._finished.amount + underway, self._finished.items)


def _read_so_far(path: os.PathLike[str]) -> int:
    """Return the position in the source, from the last complete line of a journal that has it."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return 0  # finished meanwhile
    for line in reversed(lines):
        if line.endswith(b"\n"):
            try:
                found = json.loads(line)
                if "sha256" not in found:
                    return int(found.get("read", 0))
            except ValueError:
                return 0
    return 0


class ProgressBar:
    """Shows progress and remaining time while in the context.

    A bar on a terminal, otherwise one line per minute. The remaining time is estimated from the progress of
    all processes since the start.
    """

    def __init__(self, task: Task, quiet: bool) -> None:
        self.task, self.quiet = task, quiet
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ProgressBar:
        if not self.quiet:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if not self.quiet:
            self._thread.join()

    def _run(self) -> None:
        from tqdm import tqdm

        task = self.task
        start = task.look()
        on_terminal = sys.stderr.isatty()
        unit = (
            {"unit": task.amount, "unit_scale": True} if task.amount == "B" else {"unit": f" {task.amount}"}
        )
        shown: dict[str, Any] = {"total": task.total, "initial": start.amount, **unit}
        bar = tqdm(disable=not on_terminal, dynamic_ncols=True, **shown)
        began = reported = time.monotonic()
        pause = 1.0
        with bar:
            while not self._over.wait(pause):
                looked = time.monotonic()
                now = task.look()
                # On slow file systems with many shards: at most a twentieth of the time is spent on progress.
                pause = max(1.0, 20 * (time.monotonic() - looked))
                items = f"{now.items} of {len(task.items)} {task.unit}"
                bar.set_postfix_str(items, refresh=False)
                bar.update(now.amount - bar.n)
                if not on_terminal and looked - reported >= _IN_LOGS:
                    reported = looked
                    seconds = looked - began
                    line = tqdm.format_meter(now.amount, elapsed=seconds, ncols=0, postfix=items, **shown)
                    print(line, file=sys.stderr, flush=True)
