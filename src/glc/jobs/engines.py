"""Engines: distribute the items of a task over the processes of this machine, or of a Ray cluster.

```
items --> local: one process each     --> run_one(item) --> Outcome
      '-> ray:   one Ray task each    --'
```

Both only schedule. An item that is processed twice, also by two processes at the same time, does no harm:
each publishes its result atomically and the first one wins (`glc.jobs.manifest`).
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

from glc.io.threads_policy import PASSIVE, USER_SETTINGS
from glc.jobs.manifest import JobError

_ATTEMPTS = 2
"""Attempts of an item that ends its process, or whose process reports an error, in one command."""
_REPORTS = 1.0
"""Seconds between reports of the progress within an item to Ray's driver."""
_IN_A_ROW = 8
"""Items that fail in a row, with Ray, before no more are started: a full disk, say, fails them all."""


class DeferredError(RuntimeError):
    """An item cannot be processed now, e.g. for lack of memory, but others can. It stays unfinished."""


class Worker(Protocol):
    """Processes items; created once per process."""

    def run_one(self, item: Any, report: Report) -> Any:
        """Process an item and return its outcome; see `glc.jobs.run.Task`.

        Processing an item again, even at the same time in another process, has the same output and outcome.

        Raises:
            DeferredError: the item cannot be processed now.
            Exception: this process cannot continue, e.g. the disk is full.
        """
        ...


MakeWorker = Callable[[int], Worker]
"""Makes the worker of a process from its local rank; must be picklable."""
Report = Callable[[int], None]
"""Takes the amount of the current item that is done."""


class Outcome(NamedTuple):
    """What became of an item: its outcome, or a problem, in one line."""

    item: Any
    value: Any = None
    problem: str | None = None


@dataclass(frozen=True)
class Engine:
    """Where items are processed.

    Args:
        kind: `local` or `ray`. Ray joins the cluster of `RAY_ADDRESS` or this machine's, else starts one.
        processes: of `local`; 1 works in this process.
        threads: threads per process; None: torch's default.
        cpus: of `ray`: CPUs reserved per item; None: the threads.
        gpus: of `ray`: GPUs reserved per item, also a fraction; None: 1 if the cluster has any.
        memory: of `ray`: bytes reserved per item.
        part: (i, n): only items i, i + n, ..., for the tasks of a job array.
    """

    kind: str = "local"
    processes: int = 1
    threads: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    memory: int | None = None
    part: tuple[int, int] = (0, 1)

    def run(self, make_worker: MakeWorker, items: Sequence[Any], progress: Progress) -> Iterator[Outcome]:
        """Process items; yield what became of each, in the order of their ends.

        Raises:
            JobError: several tasks of SLURM or torchrun would all process the same items.
            ValueError, RuntimeError: the worker of this process, or the cluster, cannot be created.
        """
        for name in ("SLURM_STEP_NUM_TASKS", "WORLD_SIZE"):
            count = os.environ.get(name, "1")
            if count != "1" and self.part[1] == 1:
                raise JobError(
                    f"{name}={count}: each of these processes would do the whole job; start it once, with "
                    "--engine ray, or as a job array with --part I/N (docs/scaling.md)"
                )
        if self.kind == "ray":
            return _on_ray(self, make_worker, items, progress)
        if self.processes == 1:
            return _in_this_process(self.threads, make_worker, items, progress)
        return _in_processes(self, make_worker, items, progress)


class Progress:
    """Amounts of the items that are being processed."""

    def __init__(self) -> None:
        self.total: Callable[[], int] = lambda: 0


def _in_this_process(
    threads: int | None, make_worker: MakeWorker, items: Sequence[Any], progress: Progress
) -> Iterator[Outcome]:
    _set_threads(threads)
    done = [0]
    progress.total = lambda: done[0]
    worker = make_worker(0)
    for item in items:
        try:
            value = worker.run_one(item, lambda amount: done.__setitem__(0, amount))
        except DeferredError as error:
            yield Outcome(item, problem=reason_of(error))
        except (OSError, RuntimeError, ValueError) as error:
            yield Outcome(item, problem=reason_of(error))
            return
        else:
            yield Outcome(item, value)
        done[0] = 0


class _Slot:
    """One process at a time: a pool of one, so that a process that dies takes one item with it."""

    def __init__(self, engine: Engine, make_worker: MakeWorker, rank: int) -> None:
        self.engine, self.make_worker, self.rank = engine, make_worker, rank
        self.context = multiprocessing.get_context("spawn")  # CUDA's state does not survive a fork
        self.done = self.context.RawValue("q", 0)
        self.pool: ProcessPoolExecutor | None = None
        self.pid = 0

    def run(self, item: Any) -> Any:
        """Process an item.

        Raises:
            BrokenProcessPool: the process died.
            Exception: that of `run_one`, or of making the worker.
        """
        try:
            if self.pool is None:
                self.pool = ProcessPoolExecutor(1, self.context, _follow, (self.done,))
                self.pid = self.pool.submit(os.getpid).result()
                self.pool.submit(_make, self.make_worker, self.rank, self.engine.threads).result()
            return self.pool.submit(_run_one, item).result()
        except BrokenProcessPool:
            self.pool = None
            raise
        finally:
            self.done.value = 0

    def stop(self) -> None:
        """End the process, also in the middle of an item."""
        pool, self.pool = self.pool, None
        if pool is not None:
            if self.pid:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGTERM)
            pool.shutdown()


def _in_processes(
    engine: Engine, make_worker: MakeWorker, items: Sequence[Any], progress: Progress
) -> Iterator[Outcome]:
    queue, ended, busy = deque(items), Counter[int](), set[int]()
    outcomes: SimpleQueue[Outcome | None] = SimpleQueue()
    stopped = threading.Event()
    slots = [_Slot(engine, make_worker, rank) for rank in range(min(engine.processes, len(items)))]
    progress.total = lambda: sum(slot.done.value for slot in slots)

    def serve(slot: _Slot) -> None:
        while (queue or busy) and not stopped.is_set():
            busy.add(slot.rank)
            try:
                item = queue.popleft()
            except IndexError:  # another process may fail, and leave its item to this one
                busy.discard(slot.rank)
                stopped.wait(0.02)
                continue
            again, alive = True, True
            try:
                outcomes.put(Outcome(item, slot.run(item)))
            except BrokenProcessPool:
                outcomes.put(Outcome(item, problem="a worker process was killed, possibly out of memory"))
            except DeferredError as error:
                again = False
                outcomes.put(Outcome(item, problem=reason_of(error)))
            except Exception as error:
                alive = False  # the process cannot continue; another one may
                outcomes.put(Outcome(item, problem=reason_of(error)))
            else:
                again = False
            ended[id(item)] += 1
            if again and ended[id(item)] < _ATTEMPTS:
                queue.append(item)
            busy.discard(slot.rank)
            if not alive:
                break
        outcomes.put(None)

    with _environment(engine.threads):
        threads = [threading.Thread(target=serve, args=(slot,), daemon=True) for slot in slots]
        for thread in threads:
            thread.start()
        try:
            left = len(threads)
            while left:
                outcome = outcomes.get()
                if outcome is None:
                    left -= 1
                else:
                    yield outcome
        finally:
            stopped.set()
            for thread, slot in zip(threads, slots, strict=True):
                slot.stop()
                thread.join()
                slot.stop()


_worker: Worker
"""Worker of this process."""
_done: Any = None


def _follow(done: Any) -> None:
    """Begin a worker process: it ends with its parent, also a killed one, and leaves Ctrl-C to it."""
    global _done
    _done = done
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def end() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _make(make_worker: MakeWorker, rank: int, threads: int | None) -> None:
    global _worker
    _worker = make_worker(rank)
    if "torch" in sys.modules:  # avoids importing torch for workers that do not use it
        _set_threads(threads)


def _run_one(item: Any) -> Any:
    return _worker.run_one(item, lambda amount: setattr(_done, "value", amount))


def _on_ray(
    engine: Engine, make_worker: MakeWorker, items: Sequence[Any], progress: Progress
) -> Iterator[Outcome]:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise JobError("--engine ray: not installed; run pip install 'glc-codec[ray]'") from error
    with _environment(engine.threads) as variables:
        given = {name: value for name, value in os.environ.items() if name.startswith("GLC_")}
        ours = not ray.is_initialized()
        ray.init(
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {**given, **variables}},
        )
    running: dict[Any, Any] = {}
    try:
        has_gpus = bool(ray.cluster_resources().get("GPU"))
        resources = {
            "num_cpus": engine.cpus or engine.threads or 1,
            "num_gpus": float(has_gpus) if engine.gpus is None else engine.gpus,
            **({} if engine.memory is None else {"memory": engine.memory}),
        }
        amounts = ray.remote(num_cpus=0, max_restarts=-1)(_Amounts).remote()
        progress.total = lambda: ray.get(amounts.total.remote(), timeout=5)
        job = ray.put((os.urandom(8), make_worker, engine.threads, amounts))
        # Lost workers and nodes: Ray starts the item again elsewhere.
        task = ray.remote(_ray_run).options(max_retries=3, **resources)
        queue, failed, in_a_row = deque(items), Counter[int](), 0
        while running or (queue and in_a_row < _IN_A_ROW):
            room = 16 + 2 * ray.cluster_resources().get("CPU", 1) / resources["num_cpus"]
            while queue and len(running) < room and in_a_row < _IN_A_ROW:
                item = queue.popleft()
                running[task.remote(job, item)] = item
            ray.wait([*running], timeout=1.0)  # for the first that ends
            for ref in ray.wait([*running], num_returns=len(running), timeout=0)[0]:
                item = running.pop(ref)
                try:
                    outcome = Outcome(item, ray.get(ref))
                except ray.exceptions.RayTaskError as error:
                    cause = error.cause if isinstance(error.cause, Exception) else error
                    outcome = Outcome(item, problem=reason_of(cause))
                    if isinstance(cause, DeferredError):
                        failed[id(item)], in_a_row = _ATTEMPTS, -1
                except ray.exceptions.RayError as error:
                    lines = str(error).strip().splitlines()
                    outcome = Outcome(
                        item, problem=f"lost by Ray: {lines[0] if lines else type(error).__name__}"
                    )
                    failed[id(item)] = _ATTEMPTS  # Ray has tried it several times
                failed[id(item)] += 1
                in_a_row = 0 if outcome.problem is None else in_a_row + 1
                if outcome.problem is not None and failed[id(item)] < _ATTEMPTS:
                    queue.append(item)
                yield outcome
    finally:
        for ref in running:
            ray.cancel(ref, force=True)
        progress.total = lambda: 0
        if ours:
            ray.shutdown()


class _Amounts:
    """Actor: the amounts of the items that are being processed, on all nodes."""

    def __init__(self) -> None:
        self.of: dict[int, int] = {}

    def set(self, process: int, amount: int) -> None:
        self.of[process] = amount

    def total(self) -> int:
        return sum(self.of.values())


_made: dict[bytes, Worker] = {}
"""Worker of this process, by job: Ray uses a process for many items."""


def _ray_run(job: tuple[bytes, MakeWorker, int | None, Any], item: Any) -> Any:
    key, make_worker, threads, amounts = job
    if key not in _made:
        _made.clear()
        _made[key] = make_worker(0)  # Ray shows a process its own GPUs only
        if "torch" in sys.modules:
            _set_threads(threads)
    process, reported = hash((os.uname().nodename, os.getpid())), time.monotonic()

    def report(amount: int) -> None:
        nonlocal reported
        if amount == 0 or time.monotonic() - reported >= _REPORTS:
            reported = time.monotonic()
            amounts.set.remote(process, amount)

    try:
        return _made[key].run_one(item, report)
    finally:
        report(0)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def _environment(threads: int | None) -> Iterator[dict[str, str]]:
    """Set the thread counts, and how threads wait, for processes that are started in this context."""
    counts = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    variables = {**counts, **({} if any(name in os.environ for name in USER_SETTINGS) else PASSIVE)}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield variables
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def reason_of(error: BaseException) -> str:
    """Return an error message in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(os.fsdecode(error.filename))}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
