"""Coding a collection: the processes of this machine, among those of all machines."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

from glc.io.locks import claim
from glc.jobs.manifest import REMEDY, CorpusError, Folder
from glc.jobs.progress import Progress, Watch
from glc.jobs.worker import Coder, Task, work

MakeCoder = Callable[[int], Coder]
"""Makes a process's coder from the number of the process on its machine."""

_STOPPED = 3
"""Exit code of a process that could not go on, and has said why."""


class UnfinishedError(RuntimeError):
    """Some shards are not done; the message says why. The same command goes on where this one stopped."""


def world() -> tuple[int, int]:
    """Return this command's number and how many there are, as torchrun or SLURM tell: 0 and 1 without them.

    Raises:
        CorpusError: what they tell is no such pair.
    """
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and size in os.environ:
            try:
                place, places = int(os.environ[rank]), int(os.environ[size])
            except ValueError:
                place, places = -1, 0
            if not 0 <= place < places:
                raise CorpusError(f"{rank}={os.environ[rank]} is no place among {size}={os.environ[size]}")
            return place, places
    return 0, 1


def place_here(here: int, processes: int) -> int:
    """Return the number of a process among all on its machine, where each task starts several of them."""
    local = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return local * processes + here


def run(
    task: Task,
    settings: dict[str, Any],
    make_coder: MakeCoder,
    *,
    processes: int = 1,
    threads: int = 1,
    force: bool = False,
    quiet: bool = False,
    remedy: str = REMEDY,
    began: float | None = None,
) -> dict[str, Any]:
    """Code a collection, or go on with it, together with whoever else runs the same command.

    Args:
        task: the shards and where they go.
        settings: all that decides the bytes; a folder takes shards of one setting only.
        make_coder: called once in each process.
        processes: of this command.
        threads: that each computes with.
        force: replace what other settings made, and what was finished before with the same. What is not
            finished is gone on with.
        quiet: show no progress.
        remedy: what the user is told to do about a folder that others' shards are in.
        began: when the command began (`time.time()`), if it has done more than to call this.

    Returns:
        The manifest's totals.

    Raises:
        CorpusError: it cannot be done so.
        UnfinishedError: it was begun and is not finished.
        OSError: the folder cannot be written to.
    """
    began = time.time() if began is None else began
    place, places = world()
    folder = Folder(task.folder)
    folder.notes.mkdir(parents=True, exist_ok=True)
    settings = {**settings, "keep": task.keep, "threads": threads}
    with claim(folder.notes / "settings.lock", wait=True):
        folder.prepare(settings, task.shards, force, began, remedy)
    with Progress(Watch(folder, task.shards), quiet or place > 0):
        problems = _do(task, settings, make_coder, place, places, processes, threads)
    totals = folder.finish(settings, task.shards)
    if totals is None:
        left = sum(folder.record(shard) is None for shard in task.shards)
        reason = f" ({'; '.join(problems)})" if problems else ""
        raise UnfinishedError(
            f"{task.folder}: {left} of {len(task.shards)} shards are not finished{reason}: "
            "the same command goes on from here"
        )
    return totals


def _do(
    task: Task,
    settings: dict[str, Any],
    make_coder: MakeCoder,
    place: int,
    places: int,
    processes: int,
    threads: int,
) -> list[str]:
    """Do the work in processes of this machine; what became of those that did not end well, a line each."""
    if processes == 1:
        try:
            _set_threads(threads)
            coder = make_coder(0)
            _begin(task, settings)
            work(task, coder, place, places)
        except (OSError, RuntimeError) as error:
            return [_reason(error)]
        return []
    # Fresh interpreters: locks and a device's state do not survive a fork.
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, str(threads)))
    try:
        started = []
        for i in range(processes):
            # A channel each: of one that they share, a killed process could take the lock along.
            reason, told = context.Pipe(duplex=False)
            places_of = (i, place * processes + i, places * processes)
            arguments = (task, settings, make_coder, *places_of, threads, told)
            process = context.Process(target=_start, args=arguments, daemon=True)
            process.start()
            told.close()
            started.append((process, reason))
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    try:
        for process, _ in started:
            process.join()
    except BaseException:
        for process, _ in started:
            process.terminate()
        raise
    problems = []
    for process, reason in started:
        if process.exitcode is not None and process.exitcode < 0:
            name = signal.Signals(-process.exitcode).name
            hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
            problems.append(f"a process was ended by {name}{hint}")
        elif process.exitcode:
            problems.append(reason.recv() if reason.poll() else "a process ended with an error")
    return list(dict.fromkeys(problems))


def _begin(task: Task, settings: dict[str, Any]) -> None:
    folder = Folder(task.folder)
    with claim(folder.notes / "settings.lock", wait=True):
        folder.begin(settings)


def _start(
    task: Task,
    settings: dict[str, Any],
    make_coder: MakeCoder,
    here: int,
    place: int,
    places: int,
    threads: int,
    told: Any,
) -> None:
    """What a process of this machine runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    try:
        coder = make_coder(here)
        if "torch" in sys.modules:  # a coder that computes without it need not wait for its import
            _set_threads(threads)
        _begin(task, settings)
        work(task, coder, place, places)
    except Exception as error:
        told.send(_reason(error))
        sys.exit(_STOPPED)


def _end_with(sentinel: int) -> None:
    # Nobody would be told of what a process does whose command was killed.
    connection.wait([sentinel])
    os._exit(_STOPPED)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(os.fsdecode(error.filename))}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
