"""Tar shards in WebDataset's format: find shards, read their samples, encode members."""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from braceexpand import braceexpand

from glc.jobs import storage
from glc.jobs.storage import Stamp, is_url


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
    """A tar file to read, at a path or URL; the output shard has the same `name`."""

    name: str
    path: str

    def size(self) -> int:
        """Return its size in bytes; 0 if it is missing."""
        stamp = self.stamp()
        return 0 if stamp is None else stamp.bytes

    def stamp(self) -> Stamp | None:
        """Return size and version; None if it is missing."""
        return storage.stamp(self.path)

    def samples(self) -> Iterator[Sample]:
        """Read its samples as `read_samples` does, from a local copy if it is at a URL."""
        try:
            with storage.local_copy(self.path) as path:
                yield from read_samples(path, self.path)
        except FileNotFoundError as error:
            raise ShardError(f"{self.path}: no such file, or not readable") from error


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
    named: dict[str, str] = {}
    for item in given:
        for path in _expand(os.path.expanduser(item)):
            name = path.rpartition("/")[2] if is_url(path) else os.path.basename(path)
            other = named.setdefault(name, path)
            if other != path:
                raise ValueError(
                    f"{path}: same name as {other}, so their outputs would collide; "
                    "rename one, or write them to different folders"
                )
    return [Shard(name, path) for name, path in named.items()]


def _matches(pattern: str) -> list[str]:
    """Return the paths or URLs that match a pattern, sorted."""
    if not is_url(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    try:
        return storage.expand(pattern)
    except OSError as error:
        raise type(error)(f"{pattern}: {error}") from error


def _expand(item: str) -> list[str]:
    if os.path.isdir(item) or (is_url(item) and not item.endswith(".tar") and not set("*{") & set(item)):
        folder = item.rstrip("/") if is_url(item) else glob.escape(item)
        shards = _matches(f"{folder}/*.tar")
        if not shards:
            raise ValueError(f"{item}: contains no shards (*.tar); choose another folder")
        return shards
    if os.path.exists(item):
        return [item]
    try:
        names = expand_braces(item)
    except ValueError as error:
        raise ValueError(f"{item}: unbalanced braces; correct the pattern") from error
    found: list[str] = []
    for name in names:
        if not ("*" in name if is_url(name) else glob.has_magic(name)):
            found.append(name)
            continue
        matches = _matches(name)
        if not matches:
            raise ValueError(f"{name}: no shards match; correct the pattern")
        found += matches
    for path in found:
        if not path.lower().endswith(".tar"):
            raise ValueError(f"{path}: not a shard; its name must end in .tar")
    return found


def refuse_overwriting(shards: Sequence[Shard], folder: str, remedy: str) -> None:
    """Raise ValueError if an output shard would overwrite its source."""
    for shard in shards:
        same = shard.path == f"{folder.rstrip('/')}/{shard.name}"
        if same or os.path.realpath(shard.path) == os.path.realpath(os.path.join(folder, shard.name)):
            raise ValueError(f"{shard.path}: would be overwritten by its own output; {remedy}")


def read_samples(path: Path, where: str) -> Iterator[Sample]:
    """Read a shard's samples in order: a sample is a run of consecutive files with the same key (WebDataset).

    Args:
        where: name of the shard in messages.

    Raises:
        ShardError: it is truncated, corrupt, or not a tar file.
        OSError: it cannot be read.
    """
    sample: Sample | None = None
    seen: set[str] = set()
    end = 0
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
                    sample = Sample(key)
                    if key in seen:
                        sample.problem = "duplicate key in this shard"
                    seen.add(key)
                sample.end = end
                sample.problem = sample.problem or _problem(member)
                if sample.problem is None:
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
        raise ShardError(f"{where}: {' '.join(str(error).split()) or 'not a tar file'}") from error
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
