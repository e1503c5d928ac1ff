"""Process many files with one codec; on a GPU, files are read and written in parallel to its work."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from glc.cli.files import Job

Read = TypeVar("Read")
Coded = TypeVar("Coded")

FAILURES = (ValueError, OSError, RuntimeError, MemoryError)
"""Errors that end one job; others end the command."""
MAX_THREADS = 8
"""With more, the GPU is the bottleneck: one thread writes at least ten PNGs of 0.5 megapixels per second."""


@dataclass(frozen=True)
class Steps(Generic[Read, Coded]):
    """The steps of a job."""

    read: Callable[[Job], Read]
    code: Callable[[Job, Read], tuple[Coded, str]]
    """Returns the data to write and a summary line; runs in the calling thread, in order."""
    write: Callable[[Job, Coded], None]
    threads: int = 0
    """Number of reading threads, and of writing threads; 0 processes files one after another."""


def threads_for(device: str) -> int:
    """Return the number of I/O threads for a device type: 0 on a CPU, which is already saturated."""
    return 0 if device == "cpu" else min(MAX_THREADS, os.cpu_count() or 1)


def outcomes(jobs: Sequence[Job], steps: Steps[Read, Coded]) -> Iterator[tuple[Job, str | Exception]]:
    """Run jobs; yield each in order, with its summary or its error.

    ```
    read   a b c d ...
    code     a b c ...      one at a time; at most `threads` files wait on either side
    write      a b ...
    ```

    Args:
        jobs: the files.
        steps: how a file is processed.
    """
    if not steps.threads or len(jobs) < 2:
        for job in jobs:
            try:
                made, summary = steps.code(job, steps.read(job))
                steps.write(job, made)
            except BrokenPipeError:
                raise  # the reader of standard output has closed it
            except FAILURES as error:
                yield job, error
            else:
                yield job, summary
        return
    readers, writers = ThreadPoolExecutor(steps.threads), ThreadPoolExecutor(steps.threads)
    waiting: deque[tuple[Job, str, Future[None]]] = deque()
    try:
        for job, reading in _ahead(readers, steps.read, jobs, steps.threads):
            try:
                made, summary = steps.code(job, reading.result())
                written = writers.submit(steps.write, job, made)
                del made
            except FAILURES as error:
                summary, written = "", Future()
                written.set_exception(error)
            waiting.append((job, summary, written))
            while waiting and (len(waiting) > steps.threads or waiting[0][2].done()):
                yield _settled(*waiting.popleft())
        while waiting:
            yield _settled(*waiting.popleft())
    finally:
        # Writes in progress are finished, so that no partial file remains.
        readers.shutdown(cancel_futures=True)
        writers.shutdown(cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[Job], Read], jobs: Sequence[Job], number: int
) -> Iterator[tuple[Job, Future[Read]]]:
    waiting: deque[tuple[Job, Future[Read]]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(read, job)))
        if len(waiting) > number:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _settled(job: Job, summary: str, written: Future[None]) -> tuple[Job, str | Exception]:
    try:
        written.result()
    except FAILURES as error:
        return job, error
    return job, summary
