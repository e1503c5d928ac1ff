"""Lines on the terminal about the files of a command, also from threads that process them side by side."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Messages(threading.local):
    """The lines of a thread, and the file that it works at."""

    held: list[tuple[str, TextIO]] | None = None
    """Lines held back until the file's outcome is printed; None: they are printed at once."""
    name: str | None = None


MESSAGES = Messages()


def say(text: str, file: TextIO) -> None:
    """Write a line, above the progress bar if there is one, or hold it back."""
    if MESSAGES.held is not None:
        MESSAGES.held.append((text, file))
    elif "tqdm" not in sys.modules:
        print(text, file=file)
    else:
        from tqdm import tqdm

        tqdm.write(text, file=file)


@contextmanager
def notes_on(name: str) -> Iterator[None]:
    """Make warnings about a target, in this thread, notes on a file."""
    MESSAGES.name = name
    try:
        yield
    finally:
        MESSAGES.name = None


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print each warning about a target as a line on stderr; ignore other warnings.

    Filters belong to the process, not to a thread, so they are set once for all files.
    """
    from glc.codec.base import TargetWarning

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if MESSAGES.name is not None:
            say(f"{MESSAGES.name}: note: {message}", sys.stderr)

    with warnings.catch_warnings(action="ignore"):
        warnings.simplefilter("always", TargetWarning)
        warnings.showwarning = show
        yield
