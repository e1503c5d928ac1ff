"""Runner: process the items of a task in several processes and resume interrupted runs.

```
task.items --left--> queue --item--> worker process: run_one(item) --outcome--> task.record
                       ^                    |
                       '-- locked by another command, or the process died (once)
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
from typing import Any, NamedTuple, Protocol

from glc.io.threads_policy import PASSIVE, USER_SETTINGS
from glc.jobs.manifest import JobError

UNFINISHED = 3
"""Exit code of a command with unfinished items; the same command resumes."""
_ATTEMPTS = 2
"""Worker processes that may die on an item before it is given up."""
_PAUSE = 0.5
"""Seconds until an item that another command has locked is tried again."""
_IN_LOGS = 60.0
"""Seconds between lines of progress if stderr is not a terminal."""


class UnfinishedError(RuntimeError):
    """Some items are not finished; the message names the cause. The same command resumes."""


class DeferredError(RuntimeError):
    """An item cannot be processed now, e.g. for lack of memory, but others can. It stays unfinished."""


class Done(NamedTuple):
    """Finished part of a task: the amount, in its unit of progress, and the number of items."""

    amount: int
    items: int


class Worker(Protocol):
    """Processes items; created once per process."""

    def run_one(self, item: Any) -> Any:
        """Process an item and return its outcome, or None while another command processes it.

        Processing an item again, even after a killed process, has the same output and outcome.

        Raises:
            DeferredError: the item cannot be processed now.
            Exception: this process cannot continue, e.g. the disk is full.
        """
        ...


@dataclass
class Task(ABC):
    """Work divided into items; each output depends only on the item and the settings."""

    name: str
    """Name in messages: the output folder."""
    items: Sequence[Any]
    """All items; must be picklable."""
    make_worker: Callable[[int], Worker]
    """Makes the worker of a process from its local rank; must be picklable."""
    unit: str
    """Name of its items in messages, in the plural."""
    total: int
    """Amount of work, in units of `amount`."""
    amount: str
    """Unit of the progress: `B` for bytes."""

    @abstractmethod
    def outcome(self, item: Any) -> Any:
        """Return the outcome of a finished item, else None."""

    @abstractmethod
    def look(self) -> Done:
        """Return the progress; called repeatedly for the progress bar."""

    def record(self, item: Any, outcome: Any) -> None:  # noqa: B027 (nothing to do by default)
        """Record the outcome of a newly finished item; called in the main process."""


def dist_info() -> tuple[int, int]:
    """Return rank and world size of this command, as set by torchrun or SLURM; 0 and 1 without them.

    Raises:
        JobError: the rank is not below the world size, or one is not an integer.
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
    """Process the unfinished items of a task, together with other commands like this one.

    Args:
        processes: number of processes of this command; 1 works in this process.
        threads: threads per process; None: torch's default.

    Raises:
        UnfinishedError: some items are not finished.
        ValueError: the worker of this process cannot be created.
    """
    rank, world_size = dist_info()
    left = [item for item in task.items if task.outcome(item) is None]
    # Commands start at different items, so that they compete for locks as late as possible.
    start = len(left) * rank // world_size
    left = [*left[start:], *left[:start]]
    problems: list[str] = []
    if left:
        with _ProgressBar(task, quiet or rank > 0):
            if processes == 1:
                problems = _run_here(task, left, threads)
            else:
                problems = _Pool(task, left, processes, threads).run()
    undone = sum(task.outcome(item) is None for item in task.items)
    if undone:
        reason = f" ({'; '.join(dict.fromkeys(problems))})" if problems else ""
        raise UnfinishedError(
            f"{task.name}: {undone} of {len(task.items)} {task.unit} are not finished{reason}; "
            "run the same command again to resume"
        )


class _ProgressBar:
    """Shows progress and remaining time while in the context.

    A bar on a terminal, otherwise one line per minute. The remaining time is estimated from the progress of
    all processes since the start.
    """

    def __init__(self, task: Task, quiet: bool) -> None:
        self.task, self.quiet = task, quiet
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _ProgressBar:
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


def _run_here(task: Task, left: Sequence[Any], threads: int | None) -> list[str]:
    """Process items in this process; return the errors, one line each."""
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
    """A worker process, its channel and its current item."""

    def __init__(self, make_worker: Callable[[int], Worker], local_rank: int, threads: int | None) -> None:
        # Fresh interpreters: locks and CUDA state do not survive a fork.
        context = multiprocessing.get_context("spawn")
        # One channel per process: a killed process could leave a shared one locked.
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
        """Send the process an item."""
        self.item = item
        with suppress(OSError):  # the process has died; `receive` reports it
            self.channel.send(item)

    def receive(self) -> tuple[str, Any]:
        """Return the next message of the process: its kind, and an outcome or a reason."""
        try:
            kind, value = self.channel.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            if code >= 0:
                return "ended", f"a worker process exited with code {code}"
            name = signal.Signals(-code).name
            hint = ", possibly out of memory" if name == "SIGKILL" else ""
            return "ended", f"a worker process was killed by {name}{hint}"
        return kind, value


class _Pool:
    """Worker processes of this machine.

    A killed process is replaced and its item is retried once. A process that reports an error is not
    replaced; another process retries its item.
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
        """Process all items; return the errors, one line each."""
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
        """Handle a message of a process."""
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
    """Process the items received from a channel: main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles it
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    try:
        worker = make_worker(local_rank)
        if "torch" in sys.modules:  # avoids importing torch for workers that do not use it
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
    # Otherwise the worker would continue after its command was killed.
    connection.wait([sentinel])
    os._exit(UNFINISHED)


def local_rank_of(i: int, processes: int) -> int:
    """Return the rank of process `i` among all processes on this machine."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) * processes + i


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def _thread_counts(threads: int | None) -> Iterator[None]:
    """Set the thread counts, and how threads wait, for processes that are started in this context."""
    counts = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    policy = {} if any(name in os.environ for name in USER_SETTINGS) else PASSIVE
    before = {name: os.environ.get(name) for name in (*counts, *policy)}
    os.environ.update({**counts, **policy})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def reason_of(error: BaseException) -> str:
    """Return an error message in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(os.fsdecode(error.filename))}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
