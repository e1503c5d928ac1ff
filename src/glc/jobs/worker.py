"""What each process does: claim a shard, code its samples, go on until all are done."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from glc.errors import MemoryLimitError
from glc.io.locks import claim
from glc.jobs.journal import Journal
from glc.jobs.manifest import Folder, Record
from glc.jobs.tar_shards import Sample, Shard, ShardError, read_samples


class ShortOfMemoryError(RuntimeError):
    """A sample needs more memory than there is now: no fault of the sample's, so nothing is recorded."""


@dataclass(frozen=True)
class Coded:
    """What became of a file: new suffixes without the dot, contents, and what it counts."""

    files: Sequence[tuple[str, bytes]]
    pixels: int
    coded_bytes: int
    """Size of the compressed file, whether that is what was read or what was written."""


class Coder(Protocol):
    """Codes the files of samples."""

    def accepts(self, name: str) -> bool:
        """Whether a file of this name is what is coded; of a sample the first such file is."""
        ...

    def code(self, data: bytes, name: str) -> Coded:
        """Code a file; what it raises is the reason that the sample has failed."""
        ...


@dataclass(frozen=True)
class Task:
    """The whole work, which all processes share."""

    shards: Sequence[Shard]
    folder: Path
    keep: bool
    """Whether a sample's other files go along."""


def work(task: Task, coder: Coder, place: int, places: int) -> None:
    """Do shards until all are done, by this process or by others.

    Processes begin at different shards. When only shards remain that others hold, this one waits for them: if
    their process is killed, it takes over.

    Args:
        task: the whole work.
        coder: codes a sample.
        place: number of this process, from 0.
        places: number of processes on all machines.

    Raises:
        OSError: the output cannot be written.
        ShortOfMemoryError: all is done but shards with samples that need more memory.
    """
    short: dict[str, str] = {}
    folder = Folder(task.folder)
    start = len(task.shards) * place // max(1, places)
    order = [*task.shards[start:], *task.shards[:start]]
    for wait in (False, True):
        for shard in order:
            if shard.name in short or folder.record(shard) is not None:
                continue
            with claim(folder.note(shard, "lock"), wait) as claimed:
                if claimed and folder.record(shard) is None:
                    try:
                        _do(shard, folder, task.keep, coder)
                    except ShortOfMemoryError as error:
                        short[shard.name] = str(error)
    if short:
        raise ShortOfMemoryError("; ".join(short.values()))


def _do(shard: Shard, folder: Folder, keep: bool, coder: Coder) -> None:
    stamp = shard.stamp()
    if stamp is None:
        folder.target(shard).unlink(missing_ok=True)
        missing = f"{shard.path}: no such file, or it cannot be read"
        folder.write_record(shard, Record(shard.name, None, 0, 0, 0, 0, 0, "", problem=missing))
        return
    part, notes = folder.note(shard, "part"), folder.note(shard, "journal")
    journal = Journal(part, notes, stamp._asdict())
    try:
        problem: str | None = None
        try:
            for number, sample in enumerate(_tell_apart(shard, len(journal.lines))):
                if number >= len(journal.lines):
                    _code(sample, journal, keep, coder)
        except ShardError as error:
            problem = str(error)
        written, sha256 = journal.finish()
    finally:
        journal.close()
    failures = [{"key": line["key"], "error": line["error"]} for line in journal.lines if "error" in line]
    done = len(journal.lines) - len(failures)
    record = Record(
        name=shard.name,
        source_bytes=stamp.bytes,
        source_mtime_ns=stamp.mtime_ns,
        samples=len(journal.lines),
        done=done,
        coded_bytes=sum(line.get("bytes", 0) for line in journal.lines),
        pixels=sum(line.get("pixels", 0) for line in journal.lines),
        bytes=written if journal.lines or problem is None else 0,
        sha256=sha256 if journal.lines or problem is None else "",
        failures=failures,
        problem=problem,
    )
    # The record counts only together with the shard: killed between the two, the journal is still there.
    folder.write_record(shard, record)
    if record.bytes:
        os.replace(part, folder.target(shard))
    else:
        folder.target(shard).unlink(missing_ok=True)
        part.unlink(missing_ok=True)
    notes.unlink(missing_ok=True)


def _tell_apart(shard: Shard, skip: int) -> Iterator[Sample]:
    """Read samples; an error of reading the source is the shard's, not one of writing."""
    try:
        yield from read_samples(shard.path, skip)
    except OSError as error:
        raise ShardError(f"{shard.path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise ShortOfMemoryError(f"{shard.path}: not enough memory for one of its files") from error


def _code(sample: Sample, journal: Journal, keep: bool, coder: Coder) -> None:
    try:
        files, coded = _coded_files(sample, keep, coder)
    except (MemoryLimitError, MemoryError) as error:
        raise ShortOfMemoryError(f"{sample.key}: {str(error) or type(error).__name__}") from error
    except (ValueError, OSError, RuntimeError) as error:
        if "CUDA error" in str(error):
            raise  # after one of these the device answers nothing else
        journal.add(sample.key, sample.end, [], error=" ".join(str(error).split()) or type(error).__name__)
    else:
        journal.add(sample.key, sample.end, files, bytes=coded.coded_bytes, pixels=coded.pixels)


def _coded_files(sample: Sample, keep: bool, coder: Coder) -> tuple[list[tuple[str, bytes]], Coded]:
    """Return the files of a sample that are written, by name, and what became of the coded one."""
    if sample.problem is not None:
        raise ValueError(sample.problem)
    names = [f"{sample.key}.{suffix}" for suffix, _ in sample.files]
    place = next((i for i, name in enumerate(names) if coder.accepts(name)), None)
    if place is None:
        raise ValueError(f"nothing to code among its files ({', '.join(names)})")
    coded = coder.code(sample.files[place][1], names[place])
    files = [(name, content) for name, (_, content) in zip(names, sample.files, strict=True)] if keep else []
    made = [(f"{sample.key}.{suffix}", data) for suffix, data in coded.files]
    files[place if keep else 0 : place + 1 if keep else 0] = made
    if len({name for name, _ in files}) < len(files):
        raise ValueError(f"two of its files would have one name ({', '.join(name for name, _ in files)})")
    return files, coded
