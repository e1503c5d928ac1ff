"""Attempts that must show a sign of life within some seconds, all of them at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Watch:
    """What is known of one attempt while it runs in its thread."""

    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)
    alive: bool = False
    """Whether data arrived."""
    stopped: bool = False
    _stop: Callable[[], None] = lambda: None

    def note(self, alive: bool) -> None:
        """Note that data arrived, or did not; ends the thread if nobody waits for it."""
        self.alive = self.alive or alive
        if self.stopped:
            raise TimeoutError("nobody waits for this any more")

    def on_stop(self, stop: Callable[[], None]) -> None:
        """Set what ends a wait for data."""
        self._stop = stop

    def stop(self) -> None:
        """End the attempt, if it still runs, at its next byte at the latest."""
        self.stopped = True
        self._stop()


def attempt(functions: Sequence[Callable[[Watch], object]], seconds: float | None) -> list[Watch]:
    """Run functions in threads until all have returned, raised an exception, or `seconds` have passed
    (None: however long it takes).

    The threads are daemons: one that hangs in a library does not keep the process from ending.

    Returns:
        For each function its watch: `done` is set if it returned or raised `error`.
    """
    watches = [Watch() for _ in functions]

    def run(function: Callable[[Watch], object], watch: Watch) -> None:
        try:
            function(watch)
        except Exception as error:
            watch.error = error
        watch.done.set()

    for function, watch in zip(functions, watches, strict=True):
        threading.Thread(target=run, args=(function, watch), daemon=True).start()
    end = None if seconds is None else time.monotonic() + seconds
    for watch in watches:
        watch.done.wait(None if end is None else max(0.0, end - time.monotonic()))
    return watches
