"""Warnings about a target become notes on the file of the thread that raised them."""

import threading
import warnings

import pytest

from glc.cli.notes import notes_on, warnings_as_notes
from glc.codec.base import TargetWarning


def test_notes_name_the_file_of_their_thread(capsys: pytest.CaptureFixture[str]) -> None:
    both = threading.Barrier(2)

    def work(name: str) -> None:
        with notes_on(name):
            both.wait(10)
            warnings.warn(f"about {name}", TargetWarning, stacklevel=1)
            warnings.warn("of a library", UserWarning, stacklevel=1)
            both.wait(10)
        warnings.warn("after the file", TargetWarning, stacklevel=1)

    with warnings_as_notes():
        threads = [threading.Thread(target=work, args=(name,)) for name in ("a.png", "b.png")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = sorted(capsys.readouterr().err.splitlines())
    assert lines == ["a.png: note: about a.png", "b.png: note: about b.png"]
