"""Tar shards in WebDataset's format: find shards, read their samples, and write them resumably.

The content of an unfinished shard and its log does not depend on time: a resumed run writes the same bytes as
an uninterrupted one. A killed process loses at most one line or one sample.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from braceexpand import braceexpand

from glc.io.atomic import publish
from glc.jobs.manifest import Stamp


def expand_braces(pattern: str, separator: str = os.sep) -> list[str]:
    """Return the names that a pattern stands for; a pattern without braces stands for itself.

    Args:
        pattern: a path or URL, with `{a,b}` or `{000..099}` anywhere.
        separator: of paths. Where it is a backslash (Windows), a backslash does not escape a brace:
            braceexpand would remove it from the path.

    Raises:
        ValueError: the braces are not balanced.
    """
    return list(braceexpand(pattern, escape=separator != "\\"))


MAX_FILE = 1 << 30
"""Size limit of a member, in bytes."""
_BLOCK = tarfile.BLOCKSIZE


class ShardError(ValueError):
    """A shard is truncated, missing, or not a tar file; earlier samples are valid."""


@dataclass(frozen=True)
class Shard:
    """A tar file to read; the output shard has the same `name`."""

    name: str
    path: Path

    def size(self) -> int:
        """Return its size in bytes; 0 if it is missing."""
        stamp = self.stamp()
        return 0 if stamp is None else stamp.bytes

    def stamp(self) -> Stamp | None:
        """Return size and modification time; None if it is missing."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return Stamp(found.st_size, found.st_mtime_ns)

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Read its samples as `read_samples` does; a missing shard raises ShardError."""
        if self.stamp() is None:
            raise ShardError(f"{self.path}: no such file, or not readable")
        yield from read_samples(self.path, skip)


@dataclass
class Sample:
    """The files of one key, in order, as (suffix without the dot, content), or a `problem`."""

    key: str
    files: list[tuple[str, bytes]] = field(default_factory=list)
    problem: str | None = None
    end: int = 0
    """End of the sample in its shard, in bytes."""


def find_shards(given: Sequence[str]) -> list[Shard]:
    """Return the shards named by files, folders, `*` patterns, and braces as in `in-{000..099}.tar`.

    A missing file is listed too; reading it raises ShardError.

    Raises:
        ValueError: nothing was found, or two shards have the same name.
    """
    paths: list[Path] = []
    for item in given:
        paths += _expand(os.path.expanduser(item))
    named: dict[str, Path] = {}
    for path in paths:
        other = named.setdefault(path.name, path)
        if other != path:
            raise ValueError(
                f"{path}: same name as {other}, so their outputs would collide; "
                "rename one, or write them to different folders"
            )
    return [Shard(name, path) for name, path in named.items()]


def _expand(item: str) -> list[Path]:
    if os.path.isdir(item):
        found = sorted(Path(item).glob("*.tar"))
        if not found:
            raise ValueError(f"{item}: contains no shards (*.tar); choose another folder")
        return found
    if os.path.exists(item):
        return [Path(item)]
    try:
        names = expand_braces(item)
    except ValueError as error:
        raise ValueError(f"{item}: unbalanced braces; correct the pattern") from error
    found = []
    for name in names:
        matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        if glob.has_magic(name) and not matches:
            raise ValueError(f"{name}: no shards match; correct the pattern")
        found += matches or [Path(name)]
    for path in found:
        if path.suffix.lower() != ".tar":
            raise ValueError(f"{path}: not a shard; its name must end in .tar")
    return found


def refuse_overwriting(shards: Sequence[Shard], folder: Path, remedy: str) -> None:
    """Raise ValueError if an output shard would overwrite its source."""
    for shard in shards:
        if os.path.realpath(shard.path) == os.path.realpath(folder / shard.name):
            raise ValueError(f"{shard.path}: would be overwritten by its own output; {remedy}")


def read_samples(path: Path, skip: int = 0) -> Iterator[Sample]:
    """Read a shard's samples in order: a sample is a run of consecutive files with the same key (WebDataset).

    Args:
        skip: number of samples at the start to return without files.

    Raises:
        ShardError: it is truncated, corrupt, or not a tar file.
        OSError: it cannot be read.
    """
    sample: Sample | None = None
    seen: set[str] = set()
    count = end = 0
    try:
        with _damage():
            tar = tarfile.open(path, "r:")  # noqa: SIM115 (closed by the next line)
        with tar:
            while True:
                with _damage():
                    member = tar.next()
                if member is None:
                    break
                end = (
                    tar.offset
                )  # offset of the next header; a sparse member's size differs from its stored size
                if not member.isfile() and not member.islnk() and not member.issym():
                    continue
                key, suffix = split_name(member.name)
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample
                        count += 1
                    sample = Sample(key)
                    if key in seen:
                        sample.problem = "duplicate key in this shard"
                    seen.add(key)
                sample.end = end
                sample.problem = sample.problem or _problem(member)
                if count >= skip and sample.problem is None:
                    with _damage():
                        source = tar.extractfile(member)
                    assert source is not None
                    content = source.read()
                    if len(content) != member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    sample.files.append((suffix, content))
        _check_end(path, end)
    except (tarfile.TarError, EOFError, ValueError, UnicodeError) as error:
        # The current sample may be incomplete: it is not returned.
        raise ShardError(f"{path}: {' '.join(str(error).split()) or 'not a tar file'}") from error
    if sample is not None:
        yield sample


@contextmanager
def _damage() -> Iterator[None]:
    """Convert any exception of tarfile into ReadError: a corrupt header may even raise MemoryError."""
    try:
        yield
    except (OSError, tarfile.TarError):
        raise
    except Exception as error:
        raise tarfile.ReadError(f"corrupt header ({type(error).__name__})") from error


def _check_end(path: Path, end: int) -> None:
    """Check that the last member is followed by an empty block; tarfile accepts anything as the end."""
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise tarfile.ReadError(f"truncated at byte {end}")
    if any(block):
        raise tarfile.ReadError(f"corrupt at byte {end}")


def split_name(name: str) -> tuple[str, str]:
    """Return key and suffix; the suffix starts after the first dot of the last path component."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix


def _problem(member: tarfile.TarInfo) -> str | None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        return f"unsafe path {member.name!r}"
    # Links may point outside; the size of a sparse member is not bounded by the shard's.
    if not member.isreg() or member.issparse():
        return f"{member.name} is not a regular file"
    if member.size > MAX_FILE:
        return f"{member.name} has {member.size} bytes, more than the limit of {MAX_FILE}"
    return None


def member_bytes(name: str, content: bytes) -> bytes:
    """Encode a file as a tar member; the bytes do not depend on time, machine or user."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    packed = header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return packed + content + bytes(-len(content) % _BLOCK)


def closing_bytes(size: int) -> bytes:
    """Return the end of a shard of `size` bytes: two empty blocks and padding to the record size."""
    total = size + 2 * _BLOCK
    return bytes(2 * _BLOCK + -total % tarfile.RECORDSIZE)


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
            read: its end in the source.
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
