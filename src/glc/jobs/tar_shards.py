"""Tar shards as WebDataset has them: finding them, reading their samples, and the bytes of those written."""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from braceexpand import braceexpand

from glc.jobs.manifest import Stamp

MAX_FILE = 1 << 30
"""Largest file of a sample that is read, in bytes."""
_BLOCK = tarfile.BLOCKSIZE


class ShardError(ValueError):
    """A shard breaks off, is missing, or is no tar file; what came before is good."""


@dataclass(frozen=True)
class Shard:
    """A tar file to be read; `name` is also that of the shard that is written."""

    name: str
    path: Path

    def size(self) -> int:
        """Return its size in bytes, 0 where it is missing."""
        stamp = self.stamp()
        return 0 if stamp is None else stamp.bytes

    def stamp(self) -> Stamp | None:
        """Return what tells its content from another, None where it is missing."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return Stamp(found.st_size, found.st_mtime_ns)

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Read its samples; see `read_samples`. A missing shard is a ShardError, too."""
        if self.stamp() is None:
            raise ShardError(f"{self.path}: no such file, or it cannot be read")
        yield from read_samples(self.path, skip)


@dataclass
class Sample:
    """The files of one key, in order, as (suffix without the dot, content); or why they cannot be read."""

    key: str
    files: list[tuple[str, bytes]] = field(default_factory=list)
    problem: str | None = None
    end: int = 0
    """Where it ends in its shard, in bytes."""


def find_shards(given: Sequence[str]) -> list[Shard]:
    """Return the shards that names stand for: files, folders, `*`, and braces as in `in-{000..099}.tar`.

    A name without a file is a shard too; that it is missing is reported when its turn comes.

    Raises:
        ValueError: nothing was found, or two shards have one name.
    """
    paths: list[Path] = []
    for item in given:
        paths += _expand(os.path.expanduser(item))
    named: dict[str, Path] = {}
    for path in paths:
        other = named.setdefault(path.name, path)
        if other != path:
            raise ValueError(
                f"{path} and {other} have the same name, and so would their outputs; "
                "rename one, or write each to another folder"
            )
    return [Shard(name, path) for name, path in named.items()]


def _expand(item: str) -> list[Path]:
    if os.path.isdir(item):
        found = sorted(Path(item).glob("*.tar"))
        if not found:
            raise ValueError(f"{item}: no shards (*.tar) in this folder")
        return found
    if os.path.exists(item):
        return [Path(item)]
    try:
        names = list(braceexpand(item))
    except ValueError as error:
        raise ValueError(f"{item}: unbalanced braces") from error
    found = []
    for name in names:
        matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        if glob.has_magic(name) and not matches:
            raise ValueError(f"{name}: no shards match")
        found += matches or [Path(name)]
    for path in found:
        if path.suffix.lower() != ".tar":
            raise ValueError(f"{path}: the name of a shard ends in .tar")
    return found


def refuse_overwriting(shards: Sequence[Shard], folder: Path, remedy: str) -> None:
    """Raise ValueError where a shard would be written over what it is made from."""
    for shard in shards:
        if os.path.realpath(shard.path) == os.path.realpath(folder / shard.name):
            raise ValueError(f"{shard.path}: would be written over; {remedy}")


def read_samples(path: Path, skip: int = 0) -> Iterator[Sample]:
    """Read a shard's samples in order: files that follow each other and share a key, as WebDataset has it.

    Args:
        path: the shard.
        skip: samples at the start whose content is not wanted; they come without files.

    Raises:
        ShardError: it breaks off or is no shard.
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
                end = tar.offset  # where the next header is; a sparse file's size would not tell
                if not member.isfile() and not member.islnk() and not member.issym():
                    continue
                key, suffix = split_name(member.name)
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample
                        count += 1
                    sample = Sample(key)
                    if key in seen:
                        sample.problem = "its key has come before in this shard"
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
        # The sample that was being read may lack files: it is not given out.
        raise ShardError(f"{path}: {' '.join(str(error).split()) or 'not a tar file'}") from error
    if sample is not None:
        yield sample


@contextmanager
def _damage() -> Iterator[None]:
    """Take whatever tarfile raises over a header for damage: one may ask for more memory than there is."""
    try:
        yield
    except (OSError, tarfile.TarError):
        raise
    except Exception as error:
        raise tarfile.ReadError(f"damaged header ({type(error).__name__})") from error


def _check_end(path: Path, end: int) -> None:
    """Check that a shard's last file is followed by an empty block; tarfile takes anything for the end."""
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise tarfile.ReadError(f"cut short at byte {end}")
    if any(block):
        raise tarfile.ReadError(f"damaged at byte {end}")


def split_name(name: str) -> tuple[str, str]:
    """Return key and suffix: the suffix begins after the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix


def _problem(member: tarfile.TarInfo) -> str | None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        return f"the name {member.name!r} leads out of the shard"
    # Links lead elsewhere; a sparse file's size is not bounded by the shard's.
    if not member.isreg() or member.issparse():
        return f"{member.name} is no ordinary file"
    if member.size > MAX_FILE:
        return f"{member.name} has {member.size} bytes, more than the limit of {MAX_FILE}"
    return None


def member_bytes(name: str, content: bytes) -> bytes:
    """Return what a file takes in a shard, with its header; nothing in it depends on time, place or user."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    packed = header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return packed + content + bytes(-len(content) % _BLOCK)


def closing_bytes(size: int) -> bytes:
    """Return what ends a shard of so many bytes: two empty blocks, and a whole number of records."""
    total = size + 2 * _BLOCK
    return bytes(2 * _BLOCK + -total % tarfile.RECORDSIZE)
