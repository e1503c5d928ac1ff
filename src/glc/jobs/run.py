"""Run a task: give its unfinished items to an engine, record their outcomes, show the progress."""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glc.jobs.engines import Engine, MakeWorker, Outcome, Progress

UNFINISHED = 3
"""Exit code of a command with unfinished items; the same command resumes."""
_IN_LOGS = 60.0
"""Seconds between lines of progress if stderr is not a terminal."""


class UnfinishedError(RuntimeError):
    """Some items are not finished; the message names the cause. The same command resumes."""


class PartFinished(Exception):
    """This part of a job array is finished, others are not; the message says how many items are left."""


@dataclass
class Task(ABC):
    """Work divided into items; each output depends only on the item and the settings."""

    name: str
    """Name in messages: the output folder."""
    items: Sequence[Any]
    """All items; must be picklable."""
    make_worker: MakeWorker
    unit: str
    """Name of its items in messages, in the plural."""
    amount: str
    """Unit of the progress: `B` for bytes."""

    @abstractmethod
    def outcome(self, item: Any) -> Any:
        """Return the outcome of a finished item, else None."""

    @abstractmethod
    def record(self, item: Any, outcome: Any) -> None:
        """Record the outcome of a newly finished item; called in the main process."""

    def size(self, item: Any) -> int:
        """Return the size of an item in units of `amount`."""
        return 1


def run(task: Task, engine: Engine, *, quiet: bool = False) -> None:
    """Process the unfinished items of a task, or those of the engine's part.

    Raises:
        UnfinishedError: some items are not finished.
        ValueError: the worker of this process cannot be created.
    """
    first, step = engine.part
    items = task.items[first::step]
    left = [item for item in items if task.outcome(item) is None]
    problems: list[str] = []
    if left:
        progress = Progress()
        bar = _ProgressBar(task, items, progress, quiet)
        with bar:
            for outcome in engine.run(task.make_worker, left, progress):
                _take(task, outcome, problems, bar)
    undone = sum(task.outcome(item) is None for item in items)
    if undone:
        reason = f" ({'; '.join(dict.fromkeys(problems))})" if problems else ""
        raise UnfinishedError(
            f"{task.name}: {undone} of {len(items)} {task.unit} are not finished{reason}; "
            "run the same command again to resume"
        )


def _take(task: Task, outcome: Outcome, problems: list[str], bar: _ProgressBar) -> None:
    if outcome.problem is not None:
        problems.append(outcome.problem)
    else:
        task.record(outcome.item, outcome.value)
        bar.finished += 1
        bar.amount += task.size(outcome.item)


class _ProgressBar:
    """Shows progress and remaining time while in the context: a bar on a terminal, else a line per minute."""

    def __init__(self, task: Task, items: Sequence[Any], progress: Progress, quiet: bool) -> None:
        self.task, self.progress, self.count, self.quiet = task, progress, len(items), quiet
        done = [item for item in items if task.outcome(item) is not None] if not quiet else []
        self.finished, self.amount = len(done), sum(map(task.size, done))
        self.total = 0 if quiet else sum(map(task.size, items))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        if not self.quiet:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if not self.quiet:
            self._thread.join()

    def _run(self) -> None:
        from tqdm import tqdm

        in_bytes = self.task.amount == "B"
        unit = {"unit": "B", "unit_scale": True} if in_bytes else {"unit": f" {self.task.amount}"}
        shown: dict[str, Any] = {"total": self.total, "initial": self.amount, **unit}
        on_terminal = sys.stderr.isatty()
        began = reported = time.monotonic()
        with tqdm(disable=not on_terminal, dynamic_ncols=True, **shown) as bar:
            while not self._over.wait(1.0):
                now = self.amount
                try:
                    now += self.progress.total()
                except Exception:  # an engine that ends; the bar must not end the job
                    continue
                items = f"{self.finished} of {self.count} {self.task.unit}"
                bar.set_postfix_str(items, refresh=False)
                bar.update(now - bar.n)
                if not on_terminal and time.monotonic() - reported >= _IN_LOGS:
                    reported = time.monotonic()
                    line = tqdm.format_meter(now, elapsed=reported - began, ncols=0, postfix=items, **shown)
                    print(line, file=sys.stderr, flush=True)
