"""Many files through one codec: on a GPU, files are read and written while it computes."""

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
"""What ends a job and no more; other errors end all."""
MOST_THREADS = 8
"""Beyond these a GPU is the limit: a thread writes ten PNGs of half a megapixel in a second, or more."""


@dataclass(frozen=True)
class Steps(Generic[Read, Coded]):
    """What is done to a file."""

    read: Callable[[Job], Read]
    code: Callable[[Job, Read], tuple[Coded, str]]
    """Returns what is to be written and what to say of it; runs in the calling thread, in order."""
    write: Callable[[Job, Coded], None]
    threads: int = 0
    """That read ahead, and as many that write; with 0 files are done one after the other."""


def threads_for(device: str) -> int:
    """Return how many threads keep a device of a type busy: none help a CPU, which has its hands full."""
    return 0 if device == "cpu" else min(MOST_THREADS, os.cpu_count() or 1)


def outcomes(jobs: Sequence[Job], steps: Steps[Read, Coded]) -> Iterator[tuple[Job, str | Exception]]:
    """Do jobs; yield each, in their order, with what to say of it or with why it failed.

    ```
    read   a b c d ...
    code     a b c ...      one at a time; as many files are held as there are threads to read and to write
    write      a b ...
    ```

    Args:
        jobs: files to read and to write.
        steps: what to do.
    """
    if not steps.threads or len(jobs) < 2:
        for job in jobs:
            try:
                made, summary = steps.code(job, steps.read(job))
                steps.write(job, made)
            except BrokenPipeError:
                raise  # who reads standard output has seen enough
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
        # What is being written is finished: whole files or none.
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
