"""Threads that compute row tiles of a map in parallel, and the scratch buffers that they reuse."""

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
    """As many threads as PyTorch may use; each computes row tiles of its own, single-threaded.

    Intermediate results stay in the cache of one core, and threads wait for each other only at the end of a
    map, not of each operation. A context manager.

    Args:
        alone: compute in the calling thread only, which is single-threaded meanwhile.
    """

    def __init__(self, alone: bool = False) -> None:
        self._all = torch.get_num_threads()
        self.count = 1 if alone else self._all
        self._pool: ThreadPoolExecutor | None = None
        self.scratch = Scratch()
        """Holds the transformed weights of the current convolution."""

    def __enter__(self) -> "Workers":
        """Start the threads."""
        if self.count < self._all:
            torch.set_num_threads(self.count)
        elif self.count > 1:
            self._pool = ThreadPoolExecutor(self.count, initializer=_compute_alone)
            started = Barrier(self.count)
            # PyTorch's thread count is per thread, but the last value set is the default of new threads. The
            # workers set it to 1; the lock and the reset below keep that from other threads.
            with _STARTING:
                try:
                    list(self._pool.map(lambda _: started.wait(), range(self.count)))
                except RuntimeError:  # no thread can be started: compute in this one
                    started.abort()
                    self._pool.shutdown(cancel_futures=True)
                    self._pool = None
                finally:
                    torch.set_num_threads(self.count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the threads."""
        if self.count < self._all:
            torch.set_num_threads(self._all)
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, compute: Callable[[T], U], given: Iterable[T]) -> list[U]:
        """Return the function's result for each item, in their order, or raise its first error."""
        items = list(given)
        if self._pool is None or len(items) == 1:
            return [compute(item) for item in items]
        inference = torch.is_inference_mode_enabled()

        def call(item: T) -> U:
            with torch.inference_mode(inference):  # the mode is per thread
                return compute(item)

        return list(self._pool.map(call, items))


def _compute_alone() -> None:
    """Make PyTorch single-threaded in this thread."""
    # The first get_num_threads() of a thread initialises its own count and would reset it: call it first.
    torch.get_num_threads()
    torch.set_num_threads(1)


class Scratch:
    """A reusable buffer; each `take` invalidates the previous one.

    Allocating fresh pages takes longer than a pass over them. The buffer grows on demand and shrinks when it
    is more than four times too large.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return `count` uninitialised values."""
        size = count * dtype.itemsize
        if not size <= self._memory.numel() <= 4 * size:
            self._memory = self._memory[:0].clone()  # free before allocating
            self._memory = torch.empty(size, dtype=torch.uint8, device="cpu")
        return self._memory[:size].view(dtype)

    def map(self, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return an uninitialised map `[1, C, H, W]` in channels-last memory."""
        values = self.take(channels * height * width, dtype)
        return values.view(1, height, width, channels).permute(0, 3, 1, 2)


class _ThreadBuffers(threading.local):
    """The scratch buffers of each thread."""

    def __init__(self) -> None:
        self.normalized = Scratch()
        """A normalised row tile."""
        self.transforms = Scratch()
        """Winograd transforms of the 6x6 tiles in work."""


BUFFERS = _ThreadBuffers()
