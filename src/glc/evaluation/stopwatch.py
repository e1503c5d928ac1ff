"""Where the time of a codec goes, and how much memory it takes."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from glc.codec.codec import Codec
from glc.codec.payload import TransformPayload

ENTROPY_CODING = "entropy coding"
"""Everything between the networks' tensors and bytes: choosing a step's elements, copies off the device,
sorting by class, the coder itself, and putting symbols back."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Stopwatch:
    """Sums the wall time of wrapped functions; time inside an inner one does not count for the outer.

    Args:
        device: waited for before and after each call, where it works on its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._inner = [0.0]

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed under the name of a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            wait(self._device)
            start = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                wait(self._device)
                whole = time.perf_counter() - start
                self.seconds[part] += whole - self._inner.pop()
                self._inner[-1] += whole

        return timed


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def watched(codec: Codec) -> Iterator[Stopwatch]:
    """Time the parts of a codec within the block, by their names in the paper and `ENTROPY_CODING`."""
    stopwatch = Stopwatch(codec.device)
    payload, model = codec._payload, codec.model
    functions: list[tuple[str, Any, str]] = [("E", codec.networks, "encode"), ("D", codec.networks, "draw")]
    if isinstance(payload, TransformPayload):
        coder = payload.coder
        functions += [
            ("g_a", coder.analysis, "forward"),
            ("h_a, C_h", coder.hyper, "forward"),
            ("g_s", coder.synthesis, "forward"),
            ("exact networks", payload.synthesis, "forward"),
            ("exact networks", payload.context, "split_prior"),
            ("exact networks", payload.context, "predict"),
        ]
    else:
        functions.append(("search of codes", payload.coder, "forward"))
    if model.refiner is not None:
        functions.append(("refiner", model.refiner, "forward"))
    # What is left of reading and writing a payload, beside the networks inside, is entropy coding.
    functions += [(ENTROPY_CODING, payload, "encode"), (ENTROPY_CODING, payload, "decode")]
    try:
        for part, holder, name in functions:
            setattr(holder, name, stopwatch.wrap(part, getattr(holder, name)))
        yield stopwatch
    finally:
        for _, holder, name in functions:
            # The class's own method shows again.
            vars(holder).pop(name, None)


class PeakMemory:
    """The most memory that was held since it was made.

    On a GPU: torch's allocations there. On a CPU: the process's resident memory, with the libraries and the
    weights in it; only where the system lets a process forget its last peak (Linux).

    Args:
        device: whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._possible = device.type == "cuda"
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif device.type == "cpu":
            try:
                _CLEAR.write_text("5")
                self._possible = self._resident_peak() is not None
            except OSError:
                self._possible = False

    def bytes(self) -> int | None:
        """Return the peak so far; None where it cannot be had."""
        if not self._possible:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return self._resident_peak()

    @staticmethod
    def _resident_peak() -> int | None:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
