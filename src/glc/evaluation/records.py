"""What a run keeps in its folder while it goes on, so that a run that was killed can be started again.

```
run.json        what decides the numbers: codec, settings, pictures, protocol, versions
journal.jsonl   one line per finished piece of work, on the disk before the next is counted
```
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from glc.jobs.changes import differences

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are then not kept apart
    fcntl = None  # type: ignore[assignment]

IDENTITY = "run.json"
JOURNAL = "journal.jsonl"


class RecordsError(ValueError):
    """A folder belongs to another evaluation, or what it holds cannot be read; the message says the fix."""


def write_text(path: Path, text: str) -> None:
    """Write a file under another name, and rename it when it is whole and on the disk."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes, sync: bool = True) -> None:
    """Write a file under another name, and rename it when it is whole.

    Args:
        path: the file.
        data: its content.
        sync: wait for the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class Journal:
    """The lines of finished work in a folder.

    Args:
        file: open for appending.
        entries: what it held when it was opened.
    """

    def __init__(self, file: IO[bytes], entries: list[dict[str, Any]]) -> None:
        self._file = file
        self.entries = entries

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line; it is on the disk when this returns."""
        self._file.write(json.dumps(dict(entry)).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries.append(dict(entry))


@contextmanager
def open_journal(folder: Path, identity: Mapping[str, Any], overwrite: bool = False) -> Iterator[Journal]:
    """Open the journal of an evaluation, new or begun before.

    Args:
        folder: of the run; made if need be.
        identity: what decides the run's numbers, in JSON's types.
        overwrite: forget what the folder's journal holds.

    Raises:
        RecordsError: the folder is in use, belongs to another evaluation, or its journal is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = json.loads(json.dumps(dict(identity)))
    path = folder / JOURNAL
    # Whoever may not have the folder changes nothing in it.
    with path.open("r+b" if path.exists() else "x+b") as file:
        _lock(file, folder)
        known = folder / IDENTITY
        if overwrite:
            file.truncate(0)
            for old in ("summary.json", "per_image.csv"):
                (folder / old).unlink(missing_ok=True)
        elif known.is_file():
            _compare(folder, _read(known), plain)
        elif file.seek(0, os.SEEK_END):
            raise RecordsError(
                f"{folder}: has {JOURNAL} and no {IDENTITY}: give another out=, or overwrite=true"
            )
        write_text(known, json.dumps(plain, indent=1))
        entries = _recover(file, path)
        yield Journal(file, entries)


def _lock(file: IO[bytes], folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RecordsError(f"{folder}: another evaluation is writing into it: give another out=") from None
    except OSError:
        pass  # a file system without locks


def _read(path: Path) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    raise RecordsError(f"{path}: cannot be read: give another out=, or overwrite=true")


def _recover(file: IO[bytes], path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a journal and cut off one that was being written when the run died."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    file.truncate(whole)
    file.seek(whole)
    entries = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            raise RecordsError(f"{path}, line {number}: damaged: give another out=, or overwrite=true")
        entries.append(entry)
    return entries


def _compare(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    found = list(differences(before, now))
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise RecordsError(
            f"{folder}: begun with other settings: {'; '.join(found[:3])}{more}: "
            "give another out=, or overwrite=true"
        )
