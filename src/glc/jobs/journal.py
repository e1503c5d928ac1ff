"""Writing one shard so that a kill costs one sample at most.

What is coded goes to a file of its own, and for each sample a line to a journal beside it: key, where
the sample ends in both shards, and a checksum of its bytes. Whoever takes the shard over reads both, drops
what is not whole in either, and goes on. The bytes are those of an undisturbed run, because nothing in them
depends on when they were written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glc.jobs.tar_shards import closing_bytes, member_bytes


class Journal:
    """A shard that is being written, and what was done for it so far.

    Args:
        part: the file for the coded samples.
        notes: the journal.
        source: identifies what is coded; what was written for another, in what both say, is thrown away.

    Raises:
        OSError: the files cannot be made or read.
    """

    def __init__(self, part: Path, notes: Path, source: dict[str, Any]) -> None:
        self.part, self.notes = part, notes
        self.lines: list[dict[str, Any]] = []
        """What became of each sample: `key`, and either `bytes` and `pixels` or `error`."""
        self.size = 0
        self.sha256 = hashlib.sha256()
        kept = self._read(source)
        self._tar = open(part, "r+b" if part.exists() else "w+b")  # noqa: SIM115 (closed in `close`)
        self._tar.truncate(self.size)
        self._tar.seek(self.size)
        self._log = open(notes, "r+b" if notes.exists() else "w+b")  # noqa: SIM115
        self._log.truncate(kept)
        self._log.seek(kept)
        if not kept:
            self._write_line({"source": source})

    def _read(self, source: dict[str, Any]) -> int:
        """Take what is whole of what another process left; the length of that part of the journal."""
        try:
            text = self.notes.read_bytes()
            tar = open(self.part, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return 0
        kept = 0
        with tar:
            for raw in text.splitlines(keepends=True):
                try:
                    line = json.loads(raw) if raw.endswith(b"\n") else None
                except ValueError:
                    line = None
                if not isinstance(line, dict):
                    break
                if not kept:
                    found = line.get("source")
                    if not isinstance(found, dict) or not found or {**source, **found} != source:
                        return 0
                else:
                    content = tar.read(line["end"] - self.size)
                    if len(content) != line["end"] - self.size or zlib.crc32(content) != line["crc"]:
                        break
                    self.size = line["end"]
                    self.sha256.update(content)
                    self.lines.append(line)
                kept += len(raw)
        return kept

    def add(self, key: str, read: int, files: Sequence[tuple[str, bytes]], **result: Any) -> None:
        """Write a sample's files, none for one that failed, and note what became of it.

        Args:
            key: its key.
            read: where it ends in the shard that is read, in bytes.
            files: names and contents.
            **result: `bytes` and `pixels`, or `error`.

        Raises:
            OSError: the disk is full, say; what was written before stays and is gone on from.
        """
        content = b"".join(member_bytes(name, data) for name, data in files)
        if content:
            self._tar.write(content)
            self._tar.flush()
        self.size += len(content)
        self.sha256.update(content)
        line = {"key": key, "read": read, "end": self.size, "crc": zlib.crc32(content), **result}
        self._write_line(line)
        self.lines.append(line)

    def _write_line(self, line: dict[str, Any]) -> None:
        self._log.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
        self._log.flush()

    def finish(self) -> tuple[int, str]:
        """Complete the shard and bring it to the disk; its size in bytes and its SHA-256."""
        end = closing_bytes(self.size)
        self._tar.write(end)
        self._tar.flush()
        os.fsync(self._tar.fileno())
        self.sha256.update(end)
        return self.size + len(end), self.sha256.hexdigest()

    def close(self) -> None:
        """Close the files, which stay for whoever goes on; never raises."""
        for file in (self._tar, self._log):
            with contextlib.suppress(OSError):  # a full disk was told of when it was written to
                file.close()
