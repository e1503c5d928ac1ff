"""A task of shards: what each process does with one, sample after sample."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from glc.errors import MemoryLimitError
from glc.io.locks import lock
from glc.jobs.journal import Journal
from glc.jobs.manifest import REMEDY, Folder, Record, Source
from glc.jobs.progress import Done, ShardProgress
from glc.jobs.run import DeferredError, Task, reason_of, run
from glc.jobs.tar_shards import Sample, ShardError


@dataclass(frozen=True)
class Processed:
    """What became of a sample: names and contents of the files to write, and what the manifest counts."""

    files: Sequence[tuple[str, bytes]]
    pixels: int = 0
    coded_bytes: int = 0
    """Size of the compressed file, whether that is what was read or what was written."""


class SampleProcessor(Protocol):
    """Processes samples, each on its own."""

    def process(self, sample: Any) -> Processed:
        """Process a sample; a ValueError, OSError or RuntimeError is the reason that it has failed."""
        ...


@dataclass
class FileProcessor(ABC):
    """Processes one file of each sample: the first that it accepts."""

    keep: bool = field(default=False, kw_only=True)
    """Whether a sample's other files are written too."""

    @abstractmethod
    def accepts(self, name: str) -> bool:
        """Whether a file of this name is to be processed."""

    @abstractmethod
    def process_file(self, data: bytes, name: str) -> Processed:
        """Process a file; the names of what is to be written are suffixes without the dot."""

    def process(self, sample: Sample) -> Processed:
        """Process a sample.

        Raises:
            ValueError: it cannot be read, holds nothing to process, or two files would have one name.
        """
        if sample.problem is not None:
            raise ValueError(sample.problem)
        files = [(f"{sample.key}.{suffix}", content) for suffix, content in sample.files]
        names = [name for name, _ in files]
        chosen = next((i for i, name in enumerate(names) if self.accepts(name)), None)
        if chosen is None:
            raise ValueError(f"nothing to process among its files ({', '.join(names)})")
        found = self.process_file(files[chosen][1], names[chosen])
        made = [(f"{sample.key}.{suffix}", data) for suffix, data in found.files]
        files = [*files[:chosen], *made, *files[chosen + 1 :]] if self.keep else made
        names = [name for name, _ in files]
        if len(set(names)) < len(names):
            raise ValueError(f"two of its files would have one name ({', '.join(names)})")
        return replace(found, files=files)


MakeProcessor = Callable[[int], SampleProcessor]
"""Makes a process's processor from the number of the process on its machine; can be pickled."""


@dataclass
class ShardWorker:
    """Writes shards, one at a time, each under its lock."""

    folder: Folder
    processor: SampleProcessor
    locks_required: bool

    def run_one(self, shard: Source) -> Record | None:
        """Write a shard, unless it is finished; return its record, or None while another process writes it.

        Raises:
            JobError: another command has taken the folder over.
            DeferredError: a sample needs more memory than there is now.
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
            # Of a source of which nothing could be read, there is no shard.
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
        # After the shard: a record never describes a file that is not there yet.
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
                raise  # after one of these the device answers nothing else
            journal.add(sample.key, sample.end, [], error=" ".join(str(error).split()) or reason_of(error))
        else:
            counts = {"bytes": found.coded_bytes, "pixels": found.pixels}
            journal.add(sample.key, sample.end, found.files, **counts)


def _samples(shard: Source, skip: int) -> Iterator[Any]:
    """Read samples; an error of reading is the source's, and not one of writing."""
    try:
        yield from shard.samples(skip)
    except OSError as error:
        raise ShardError(reason_of(error)) from error
    except MemoryError as error:
        raise DeferredError(f"{shard.name}: not enough memory for one of its files") from error


class ShardTask(Task):
    """A task whose items are shards, recorded in files beside them.

    Args:
        folder: that they are written to.
        shards: what they are made from.
        make_processor: see `MakeProcessor`.
        amount: unit of the sources' sizes.
        locks_required: refuse a file system without locks, on which two commands cannot share the work.
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
        """Return how much is read of all shards."""
        return self._progress.look()


def _make_worker(
    folder: Folder, make_processor: MakeProcessor, locks_required: bool, local_rank: int
) -> ShardWorker:
    processor = make_processor(local_rank)
    folder.begin()  # once all that the work needs is there
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
    """Write shards with a manifest, or resume, together with whoever else runs the same command.

    Args:
        shards: what is read; each becomes a shard of the same name.
        path: the folder that they are written to.
        settings: everything that decides the bytes; a folder takes shards of one setting only.
        make_processor: called once in each process.
        processes: of this command.
        threads: that each computes with; a setting, too.
        force: replace what other settings made, and what was finished before with the same. What is not
            finished is resumed.
        quiet: show no progress.
        remedy: what the user is told to do about shards that are in the way.
        began: when the command began (`time.time()`), if it has done more than to call this.

    Returns:
        The manifest's totals.

    Raises:
        JobError: it cannot be done so.
        UnfinishedError: it was begun and is not finished.
        OSError: the folder cannot be written to.
    """
    folder = Folder(path, {**settings, "threads": threads})
    folder.prepare(shards, force, time.time() if began is None else began, remedy)
    task = ShardTask(folder, shards, make_processor)
    run(task, processes=processes, threads=threads, quiet=quiet)
    return folder.finish(shards)
