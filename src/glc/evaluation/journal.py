"""Journal of the evaluation of a folder: finished images, one per line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Log:
    """An append-only file of JSON objects, one per line.

    Args:
        path: the file, created if it does not exist. Bytes after its last complete line are removed.
        fsync: flush each line to the disk before `append` returns.

    Raises:
        OSError: the file cannot be created or read.
    """

    def __init__(self, path: Path, fsync: bool = False) -> None:
        self._fsync = fsync
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 (closed in `close`)
        self.lines: list[dict[str, Any]] = []
        self._ends = [0]
        for raw in self._file.read().splitlines(keepends=True):
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                line = None
            if not isinstance(line, dict):
                break
            self.lines.append(line)
            self._ends.append(self._ends[-1] + len(raw))
        self.cut(len(self.lines))

    def cut(self, count: int) -> None:
        """Keep the first `count` lines."""
        del self.lines[count:], self._ends[count + 1 :]
        self._file.truncate(self._ends[-1])
        self._file.seek(self._ends[-1])

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            OSError: it cannot be written; earlier lines are kept.
        """
        raw = json.dumps(dict(line)).encode() + b"\n"
        self._file.write(raw)
        self._file.flush()
        if self._fsync:
            os.fsync(self._file.fileno())
        self.lines.append(dict(line))
        self._ends.append(self._ends[-1] + len(raw))

    def close(self) -> None:
        """Close the file; never raises."""
        with contextlib.suppress(OSError):  # a full disk was reported when it was written to
            self._file.close()
