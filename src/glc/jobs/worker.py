"""Jobs over shards: process each shard sample by sample."""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from glc.errors import MemoryLimitError
from glc.io.locks import lock
from glc.jobs.manifest import REMEDY, Folder, Record, Source
from glc.jobs.run import DeferredError, Done, Task, reason_of, run
from glc.jobs.tar_shards import Journal, Sample, ShardError


@dataclass(frozen=True)
class Processed:
    """Result of a sample: (name, content) of the files to write, and counts for the manifest."""

    files: Sequence[tuple[str, bytes]]
    pixels: int = 0
    coded_bytes: int = 0
    """Size of the compressed file, be it the input or the output."""


class SampleProcessor(Protocol):
    """Processes samples independently."""

    def process(self, sample: Any) -> Processed:
        """Process a sample; a ValueError, OSError or RuntimeError marks it as failed."""
        ...


@dataclass
class FileProcessor(ABC):
    """Processes one file of each sample: by default the first accepted one."""

    keep: bool = field(default=False, kw_only=True)
    """Whether to write a sample's other files too."""

    @abstractmethod
    def accepts(self, name: str) -> bool:
        """Whether to process a file of this name."""

    def choose(self, names: Sequence[str]) -> str | None:
        """Return the name of the file of a sample to process; None if it has none."""
        return next(filter(self.accepts, names), None)

    @abstractmethod
    def process_file(self, data: bytes, name: str) -> Processed:
        """Process a file; output names are suffixes without the dot."""

    def process(self, sample: Sample) -> Processed:
        """Process a sample.

        Raises:
            ValueError: it cannot be read, has nothing to process, or two outputs would have the same name.
        """
        if sample.problem is not None:
            raise ValueError(sample.problem)
        files = [(f"{sample.key}.{suffix}", content) for suffix, content in sample.files]
        names = [name for name, _ in files]
        name = self.choose(names)
        if name is None:
            raise ValueError(f"no file to process ({', '.join(names)})")
        chosen = names.index(name)
        found = self.process_file(files[chosen][1], name)
        made = [(f"{sample.key}.{suffix}", data) for suffix, data in found.files]
        files = [*files[:chosen], *made, *files[chosen + 1 :]] if self.keep else made
        names = [name for name, _ in files]
        if len(set(names)) < len(names):
            raise ValueError(f"two output files would have the same name ({', '.join(names)})")
        return replace(found, files=files)


_TAIL = 1 << 16
"""Bytes at the end of a journal that contain its last complete line."""

MakeProcessor = Callable[[int], SampleProcessor]
"""Makes the processor of a process from its local rank; must be picklable."""


@dataclass
class ShardWorker:
    """Writes shards one at a time, holding the lock of each."""

    folder: Folder
    processor: SampleProcessor
    locks_required: bool

    def run_one(self, shard: Source) -> Record | None:
        """Write a shard if it is not finished; return its record, or None while another process writes it.

        Raises:
            JobError: another command has replaced the folder's settings.
            DeferredError: a sample needs more memory than is free.
            OSError: the shard cannot be written.
        """
        found = self.folder.record(shard)
        if found is not None:
            return found
        with lock(self.folder.note(shard, "lock"), required=self.locks_required) as held:
            if not held:
                return None
            self.folder.check_settings()
            return self.folder.record(shard) or self._write(shard)

    def _write(self, shard: Source) -> Record:
        target = self.folder.target(shard)
        stamp = shard.stamp()
        problem = None
        part, notes = self.folder.note(shard, "part"), self.folder.note(shard, "journal")
        journal = Journal(target, part, notes, {} if stamp is None else stamp._asdict())
        try:
            done = len(journal.samples)
            try:
                for number, sample in enumerate(_samples(shard, done)):
                    if number >= done:
                        self._process(sample, journal)
            except ShardError as error:
                problem = str(error)
            samples = journal.samples
            # If nothing could be read, no shard is written.
            written, sha256 = journal.publish() if samples or problem is None else (0, "")
        finally:
            journal.close()
        failures = [{"key": line["key"], "error": line["error"]} for line in samples if "error" in line]
        record = Record(
            name=shard.name,
            source_bytes=None if stamp is None else stamp.bytes,
            source_mtime_ns=None if stamp is None else stamp.mtime_ns,
            samples=len(samples),
            done=len(samples) - len(failures),
            coded_bytes=sum(line.get("bytes", 0) for line in samples),
            pixels=sum(line.get("pixels", 0) for line in samples),
            bytes=written,
            sha256=sha256,
            failures=failures,
            problem=problem,
        )
        if not written:
            target.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
        # After the shard: a record never describes a missing file.
        self.folder.write_record(shard, record)
        notes.unlink(missing_ok=True)
        return record

    def _process(self, sample: Any, journal: Journal) -> None:
        try:
            found = self.processor.process(sample)
        except (MemoryLimitError, MemoryError) as error:
            raise DeferredError(f"{sample.key}: {reason_of(error)}") from error
        except (ValueError, OSError, RuntimeError) as error:
            if "CUDA error" in str(error):
                raise  # after a CUDA error the process cannot use the device
            journal.add(sample.key, sample.end, [], error=" ".join(str(error).split()) or reason_of(error))
        else:
            counts = {"bytes": found.coded_bytes, "pixels": found.pixels}
            journal.add(sample.key, sample.end, found.files, **counts)


def _samples(shard: Source, skip: int) -> Iterator[Any]:
    """Read samples; read errors become ShardError, to tell them from write errors."""
    try:
        yield from shard.samples(skip)
    except OSError as error:
        raise ShardError(reason_of(error)) from error
    except MemoryError as error:
        raise DeferredError(f"{shard.name}: not enough memory to read one of its files") from error


class ShardProgress:
    """Progress of all processes on all machines, read from the state files of a folder."""

    def __init__(self, folder: Folder, shards: Sequence[Source]) -> None:
        self.folder = folder
        self._open = {shard.name: (shard, shard.size()) for shard in shards}
        self.total = sum(size for _, size in self._open.values())
        self._finished = Done(0, 0)

    def look(self) -> Done:
        """Return the current progress; the record of a finished shard is read once."""
        present = {entry.name for entry in os.scandir(self.folder.notes)}
        underway = 0
        for name, (shard, size) in list(self._open.items()):
            if f"{name}.json" in present and self.folder.record(shard) is not None:
                del self._open[name]
                self._finished = Done(self._finished.amount + size, self._finished.items + 1)
            elif f"{name}.journal" in present:
                underway += min(size, _read_so_far(self.folder.note(shard, "journal")))
        return Done(self._finished.amount + underway, self._finished.items)


def _read_so_far(path: os.PathLike[str]) -> int:
    """Return the position in the source, from the last complete line of a journal that has it."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return 0  # finished meanwhile
    for line in reversed(lines):
        if line.endswith(b"\n"):
            try:
                found = json.loads(line)
                if "sha256" not in found:
                    return int(found.get("read", 0))
            except ValueError:
                return 0
    return 0


class ShardTask(Task):
    """A task whose items are shards; their records are files in the output folder.

    Args:
        amount: unit of the sources' sizes.
        locks_required: refuse file systems without locks, where commands cannot share the work.
    """

    def __init__(
        self,
        folder: Folder,
        shards: Sequence[Source],
        make_processor: MakeProcessor,
        amount: str = "B",
        locks_required: bool = True,
    ) -> None:
        make_worker = partial(_make_worker, folder, make_processor, locks_required)
        self._progress = ShardProgress(folder, shards)
        super().__init__(str(folder.path), shards, make_worker, "shards", self._progress.total, amount)
        self._folder = folder

    def outcome(self, item: Source) -> Record | None:
        """Return the record of a finished shard, else None."""
        return self._folder.record(item)

    def look(self) -> Done:
        """Return the progress over all shards."""
        return self._progress.look()


def _make_worker(
    folder: Folder, make_processor: MakeProcessor, locks_required: bool, local_rank: int
) -> ShardWorker:
    processor = make_processor(local_rank)
    folder.begin()  # only after the processor was created: a failure leaves the settings replaceable
    return ShardWorker(folder, processor, locks_required)


def run_shards(
    shards: Sequence[Source],
    path: Path,
    settings: dict[str, Any],
    make_processor: MakeProcessor,
    *,
    processes: int = 1,
    threads: int = 1,
    force: bool = False,
    quiet: bool = False,
    remedy: str = REMEDY,
    began: float | None = None,
) -> dict[str, Any]:
    """Write shards and a manifest, or resume, together with other commands like this one.

    Args:
        shards: sources; each output shard has the name of its source.
        settings: everything that determines the bytes; all shards of a folder have the same settings.
        make_processor: called once per process.
        threads: threads per process; part of the settings.
        force: replace shards made with other settings, and a finished job with the same settings. An
            unfinished job is resumed.
        began: start of the command (`time.time()`); None: now.

    Returns:
        The manifest's totals.

    Raises:
        JobError: the folder or the arguments do not allow it.
        UnfinishedError: some shards are not finished.
        OSError: the folder cannot be written to.
    """
    folder = Folder(path, {**settings, "threads": threads})
    folder.prepare(shards, force, time.time() if began is None else began, remedy)
    task = ShardTask(folder, shards, make_processor)
    run(task, processes=processes, threads=threads, quiet=quiet)
    return folder.finish(shards)
