"""Memory that is used again and again."""

import threading

import torch
from torch import Tensor


class Scratch:
    """Memory for what is used up before the next is asked for, which takes its place.

    Fresh memory costs the system more time than a pass over it: it is asked for seldom, and given back where
    it is far more than what is needed.
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
