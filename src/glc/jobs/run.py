"""The runner: do the items of a task in several processes, and resume where an earlier run stopped.

```
task.items --left--> queue --item--> worker process: run_one(item) --outcome--> task.record
                       ^                    |
                       '-- held elsewhere, or the process died (once)
```
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from glc.jobs.manifest import JobError
from glc.jobs.progress import Done, ProgressBar

UNFINISHED = 3
"""Exit code of a command that left something undone: the same command resumes."""
_ATTEMPTS = 2
"""Processes that an item may end before it is left undone."""
_PAUSE = 0.5
"""Seconds until an item that another command holds is tried again."""


class UnfinishedError(RuntimeError):
    """Some items are not done; the message says why. The same command resumes."""


class DeferredError(RuntimeError):
    """An item cannot be done now, for lack of memory say, and others can. Nothing is recorded of it."""


class Worker(Protocol):
    """What a process builds once and does items with."""

    def run_one(self, item: Any) -> Any:
        """Do an item and return its outcome, or None while another command does this item.

        Doing an item again, even after a kill in between, has the same output and outcome.

        Raises:
            DeferredError: the item cannot be done now.
            Exception: this process can do nothing more, such as after a full disk.
        """
        ...


@dataclass
class Task(ABC):
    """Work in items, each with an output that depends on nothing but the item and the settings."""

    name: str
    """What messages call it: the folder of its outputs."""
    items: Sequence[Any]
    """All items; they can be pickled."""
    make_worker: Callable[[int], Worker]
    """Makes a process's worker from the number of the process on its machine; can be pickled."""
    unit: str
    """What messages call its items, in the plural."""
    total: int
    """How much there is to do, in `amount`."""
    amount: str
    """Unit of the progress: `B` for bytes."""

    @abstractmethod
    def outcome(self, item: Any) -> Any:
        """Return the outcome of an item that is done, else None."""

    @abstractmethod
    def look(self) -> Done:
        """Return how much is done; called now and then for the progress."""

    def record(self, item: Any, outcome: Any) -> None:  # noqa: B027 (nothing to do by default)
        """Take the outcome of an item that was just done, in the process that started the others."""


def dist_info() -> tuple[int, int]:
    """Return rank and world size of this command, as torchrun or SLURM set them; 0 and 1 without them.

    Raises:
        JobError: the environment does not hold a rank below the world size.
    """
    for rank_key, size_key in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank_key in os.environ and size_key in os.environ:
            try:
                rank, world_size = int(os.environ[rank_key]), int(os.environ[size_key])
            except ValueError:
                rank, world_size = -1, 0
            if not 0 <= rank < world_size:
                given = f"{rank_key}={os.environ[rank_key]}", f"{size_key}={os.environ[size_key]}"
                raise JobError(f"{given[0]} is out of range for {given[1]}; correct the environment")
            return rank, world_size
    return 0, 1


def run(task: Task, *, processes: int = 1, threads: int | None = None, quiet: bool = False) -> None:
    """Do what is left of a task, together with whoever else runs the same command.

    Args:
        task: the work.
        processes: of this command; one does the work in this process.
        threads: that each process computes with; None leaves this to torch.
        quiet: show no progress.

    Raises:
        UnfinishedError: something is left undone.
        ValueError: a worker of this process cannot be made.
    """
    rank, world_size = dist_info()
    left = [item for item in task.items if task.outcome(item) is None]
    # Commands begin at different items, so that they meet as late as possible.
    start = len(left) * rank // world_size
    left = [*left[start:], *left[:start]]
    problems: list[str] = []
    if left:
        with ProgressBar(task, quiet or rank > 0):
            if processes == 1:
                problems = _run_here(task, left, threads)
            else:
                problems = _Pool(task, left, processes, threads).run()
    undone = sum(task.outcome(item) is None for item in task.items)
    if undone:
        reason = f" ({'; '.join(dict.fromkeys(problems))})" if problems else ""
        raise UnfinishedError(
            f"{task.name}: {undone} of {len(task.items)} {task.unit} are not finished{reason}: "
            "run the same command again to resume"
        )


def _run_here(task: Task, left: Sequence[Any], threads: int | None) -> list[str]:
    """Do items in this process; return what went wrong, a line each."""
    problems = []
    queue, held = deque(left), deque[Any]()
    try:
        _set_threads(threads)
        worker = task.make_worker(local_rank_of(0, 1))
        while queue or held:
            if not queue:
                time.sleep(_PAUSE)
                queue, held = held, queue
            item = queue.popleft()
            try:
                outcome = worker.run_one(item)
            except DeferredError as error:
                problems.append(reason_of(error))
            else:
                if outcome is None:
                    held.append(item)
                else:
                    task.record(item, outcome)
    except (OSError, RuntimeError) as error:
        problems.append(reason_of(error))
    return problems


class _Process:
    """A worker process, the channel to it, and the item that it was given."""

    def __init__(self, make_worker: Callable[[int], Worker], local_rank: int, threads: int | None) -> None:
        # Fresh interpreters: locks and a device's state do not survive a fork.
        context = multiprocessing.get_context("spawn")
        # A channel each: a killed process could take the lock of a shared one along.
        self.channel, theirs = context.Pipe()
        self.local_rank = local_rank
        self.process = context.Process(
            target=_serve, args=(make_worker, local_rank, threads, theirs), daemon=True
        )
        with _thread_counts(threads):
            self.process.start()
        theirs.close()
        self.ready = False
        self.item: Any = None

    def give(self, item: Any) -> None:
        """Give the process an item to do."""
        self.item = item
        with suppress(OSError):  # it has just died, which `receive` says next
            self.channel.send(item)

    def receive(self) -> tuple[str, Any]:
        """Return what the process says: a kind, and the outcome or the reason that belongs to it."""
        try:
            kind, value = self.channel.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            if code >= 0:
                return "ended", f"a process ended with exit code {code}"
            name = signal.Signals(-code).name
            hint = ", perhaps out of memory" if name == "SIGKILL" else ""
            return "ended", f"a process was ended by {name}{hint}"
        return kind, value


class _Pool:
    """Worker processes of this machine.

    A process that is killed is replaced, and its item is tried once more. One that reports an error is not
    replaced; others take its item over.
    """

    def __init__(self, task: Task, left: Sequence[Any], processes: int, threads: int | None) -> None:
        self.task, self.threads = task, threads
        self.problems: list[str] = []
        self._queue, self._held = deque(left), deque[Any]()
        self._ended: Counter[int] = Counter()
        self._started: list[_Process] = []
        self._alive = [self._start(local_rank_of(i, processes)) for i in range(min(processes, len(left)))]

    def _start(self, local_rank: int) -> _Process:
        self._started.append(_Process(self.task.make_worker, local_rank, self.threads))
        return self._started[-1]

    def run(self) -> list[str]:
        """Do all items that can be done; return what went wrong, a line each."""
        try:
            while self._alive and (self._queue or self._held or any(p.item is not None for p in self._alive)):
                for process in self._alive:
                    if self._queue and process.ready and process.item is None:
                        process.give(self._queue.popleft())
                channels: dict[Any, _Process] = {p.channel: p for p in self._alive}
                answered = connection.wait(list(channels), _PAUSE if self._held else None)
                for channel in answered:
                    self._take(channels[channel])
                if not answered:
                    self._queue.extend(self._held)
                    self._held.clear()
        finally:
            for process in self._started:
                process.process.terminate()
            for process in self._started:
                process.process.join()
        return self.problems

    def _take(self, process: _Process) -> None:
        """Take what a process says."""
        kind, value = process.receive()
        item, process.item = process.item, None
        if kind == "ready":
            process.ready = True
        elif kind == "done":
            self.task.record(item, value)
        elif kind == "held":
            self._held.append(item)
        else:
            self.problems.append(value)
        if kind in ("stopped", "ended"):
            self._alive.remove(process)
            if item is not None:
                self._ended[id(item)] += 1
                if self._ended[id(item)] < _ATTEMPTS:
                    self._queue.append(item)
                if kind == "ended" and (self._queue or self._held):
                    self._alive.append(self._start(process.local_rank))


def _serve(make_worker: Callable[[int], Worker], local_rank: int, threads: int | None, channel: Any) -> None:
    """Do the items that come through a channel: what a process of the pool runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    try:
        worker = make_worker(local_rank)
        if "torch" in sys.modules:  # a worker that computes without it need not wait for its import
            _set_threads(threads)
        channel.send(("ready", None))
        while True:
            item = channel.recv()
            try:
                outcome = worker.run_one(item)
            except DeferredError as error:
                channel.send(("deferred", reason_of(error)))
            else:
                channel.send(("held" if outcome is None else "done", outcome))
    except EOFError:
        pass
    except Exception as error:
        channel.send(("stopped", reason_of(error)))
        sys.exit(UNFINISHED)


def _end_with(sentinel: int) -> None:
    # A process whose command was killed would work on unseen.
    connection.wait([sentinel])
    os._exit(UNFINISHED)


def local_rank_of(i: int, processes: int) -> int:
    """Return the number of a process among all on its machine, where each command starts several."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) * processes + i


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def _thread_counts(threads: int | None) -> Iterator[None]:
    """Tell the libraries of a process that is started now how many threads they have."""
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if threads is not None:
        os.environ.update(dict.fromkeys(before, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def reason_of(error: BaseException) -> str:
    """Return what went wrong in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(os.fsdecode(error.filename))}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
