"""Threads that compute bands of a map in parallel, and scratch buffers that each of them reuses."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

_STARTING = Lock()
T = TypeVar("T")
U = TypeVar("U")


class Workers:
    """As many threads as PyTorch may use; each computes a band of its own, single-threaded.

    Intermediate results stay in the cache of one core, and threads wait for each other only at the end of a
    map, not of each operation. Use it as a context.
    """

    def __init__(self) -> None:
        self.count = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        self.scratch = Scratch()
        """Where the weights of one convolution lie at a time."""

    def __enter__(self) -> "Workers":
        """Start the threads."""
        if self.count > 1:
            self._pool = ThreadPoolExecutor(self.count, initializer=_compute_alone)
            started = Barrier(self.count)
            # Each thread's number is its own, but the last one set is what new threads begin with: for a
            # moment that is one.
            with _STARTING:
                try:
                    list(self._pool.map(lambda _: started.wait(), range(self.count)))
                except RuntimeError:  # no more threads: without them
                    started.abort()
                    self._pool.shutdown(cancel_futures=True)
                    self._pool = None
                finally:
                    torch.set_num_threads(self.count)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, compute: Callable[[T], U], given: Iterable[T]) -> list[U]:
        """Return what a function makes of each thing given, in their order, or raise its first error."""
        items = list(given)
        if self._pool is None or len(items) == 1:
            return [compute(item) for item in items]
        inference = torch.is_inference_mode_enabled()

        def call(item: T) -> U:
            with torch.inference_mode(inference):  # each thread has its own
                return compute(item)

        return list(self._pool.map(call, items))


def _compute_alone() -> None:
    """Let this thread compute with one thread."""
    # The first get_num_threads() of a thread initialises its own count and would reset it: call it first.
    torch.get_num_threads()
    torch.set_num_threads(1)


class Scratch:
    """A reusable buffer; each `take` invalidates the previous one.

    Fresh memory costs the system more time than a pass over it. The buffer grows when it must, and
    shrinks when it is more than four times too large.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return so many values, which are not set."""
        size = count * dtype.itemsize
        if not size <= self._memory.numel() <= 4 * size:
            self._memory = self._memory[:0].clone()  # give back before asking for more
            self._memory = torch.empty(size, dtype=torch.uint8, device="cpu")
        return self._memory[:size].view(dtype)

    def map(self, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return a map `[1, C, H, W]` in channels-last memory."""
        values = self.take(channels * height * width, dtype)
        return values.view(1, height, width, channels).permute(0, 3, 1, 2)


class _Own(threading.local):
    """What each thread has of its own, as long as it lives."""

    def __init__(self) -> None:
        self.band = Scratch()
        """Where a band lies when it was normalised."""
        self.transforms = Scratch()
        """Where the transforms of a band's tiles lie."""


OWN = _Own()
