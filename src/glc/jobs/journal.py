"""Append-only files of a running job; a killed process loses at most one line or one sample.

Their content does not depend on time: a resumed run writes the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glc.io.atomic import publish
from glc.jobs.tar_shards import closing_bytes, member_bytes


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


class Journal:
    """An unfinished shard and the log of its samples.

    The samples are written to a partial file. A log beside it has one line per sample: key, end in the
    source and in the partial file, and CRC-32 of its bytes. A process that resumes the shard reads both
    files, drops samples that are incomplete in either, and continues. The last line has the size and SHA-256
    of the finished shard.

    Args:
        target: the shard.
        part: the partial file.
        notes: the log.
        source: identifies the source; samples written for another source are dropped.

    Raises:
        OSError: the files cannot be created or read.
    """

    def __init__(self, target: Path, part: Path, notes: Path, source: dict[str, Any]) -> None:
        self.target, self.part, self.notes = target, part, notes
        self.samples: list[dict[str, Any]] = []
        """Outcome of each sample: `key`, and either `bytes` and `pixels` or `error`."""
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._log = Log(notes)
        first, *rest = self._log.lines or [{}]
        found = first.get("source")
        # Logs of older versions may have fewer keys for the source.
        same = isinstance(found, dict) and found and {**source, **found} == source
        self._published = same and self._is_published(rest)
        if self._published:
            self.samples = rest[:-1]
            return
        self._tar = open(part, "r+b" if part.exists() else "w+b")  # noqa: SIM115 (closed in `close`)
        if same:
            self._recover(rest)
            self._log.cut(1 + len(self.samples))
        else:
            self._log.cut(0)
            self._log.append({"source": source})
        self._tar.truncate(self._size)
        self._tar.seek(self._size)

    def _is_published(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the shard was completed and renamed, but its record is missing."""
        if not lines or "sha256" not in lines[-1] or self.part.exists():
            return False
        try:
            with open(self.target, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == lines[-1]["sha256"]
        except OSError:
            return False

    def _recover(self, lines: Sequence[dict[str, Any]]) -> None:
        """Keep the leading samples that are complete in the partial file."""
        for line in lines:
            length = line.get("end", -1) - self._size
            content = self._tar.read(length) if length >= 0 else b""
            if len(content) != length or zlib.crc32(content) != line["crc"]:
                break
            self._size = line["end"]
            self._sha256.update(content)
            self.samples.append(line)

    def add(self, key: str, read: int, files: Sequence[tuple[str, bytes]], **result: Any) -> None:
        """Write a sample's files, none if it failed, and log its outcome.

        Args:
            key: its key.
            read: its end in the source.
            files: names and contents.
            **result: `bytes` and `pixels`, or `error`.

        Raises:
            OSError: they cannot be written; earlier samples are kept.
        """
        content = b"".join(member_bytes(name, data) for name, data in files)
        if content:
            self._tar.write(content)
            self._tar.flush()
        self._size += len(content)
        self._sha256.update(content)
        line = {"key": key, "read": read, "end": self._size, "crc": zlib.crc32(content), **result}
        self._log.append(line)
        self.samples.append(line)

    def publish(self) -> tuple[int, str]:
        """Complete the shard and rename it into place; return its size in bytes and its SHA-256."""
        if self._published:
            last = self._log.lines[-1]
            return last["bytes"], last["sha256"]
        end = closing_bytes(self._size)
        self._tar.write(end)
        self._tar.flush()
        self._sha256.update(end)
        size, sha256 = self._size + len(end), self._sha256.hexdigest()
        self._log.append({"bytes": size, "sha256": sha256})
        publish(self.part, self.target, fsync=True)
        return size, sha256

    def close(self) -> None:
        """Close the files and keep them, so that the shard can be resumed; never raises."""
        if not self._published:
            with contextlib.suppress(OSError):  # a full disk was reported when it was written to
                self._tar.close()
        self._log.close()
