"""Jobs over shards: process each shard sample by sample."""

from __future__ import annotations

import hashlib
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO

from glc.errors import MemoryLimitError
from glc.jobs.engines import DeferredError, Engine, Report, reason_of
from glc.jobs.manifest import REMEDY, Folder, Record, Source
from glc.jobs.run import PartFinished, Task, run
from glc.jobs.storage import local_copy
from glc.jobs.tar_shards import Sample, ShardError, closing_bytes, member_bytes, read_samples, split_name

Member = tuple[str, bytes]
"""Name and content of a file in a shard."""


@dataclass(frozen=True)
class Processed:
    """Result of a sample: (name, content) of the files to write, and counts for the manifest."""

    files: Sequence[Member]
    pixels: int = 0
    coded_bytes: int = 0
    """Size of the compressed file, be it the input or the output."""


class SampleProcessor(ABC):
    """Processes the samples of shards; the output of each depends on nothing else."""

    @property
    def sums(self) -> bool:
        """Whether `finish` returns something over all samples of a shard."""
        return False

    @abstractmethod
    def process(self, sample: Any) -> Processed:
        """Process a sample; a ValueError, OSError or RuntimeError marks it as failed."""

    def start(self) -> None:  # noqa: B027 (nothing to do by default)
        """Begin a shard; the one before may have been cut off."""

    def finish(self) -> Sequence[Member]:
        """Return files to add at the end of the shard, as (name, content)."""
        return ()


@dataclass
class FileProcessor(SampleProcessor):
    """Processes one file of each sample: by default the first accepted one."""

    keep: bool = field(default=False, kw_only=True)
    """Whether to write a sample's other files too."""
    member: str | None = field(default=None, kw_only=True)
    """Suffix of the file to process, without the dot; None: the first accepted one."""

    @abstractmethod
    def accepts(self, name: str) -> bool:
        """Whether to process a file of this name."""

    def choose(self, names: Sequence[str]) -> str | None:
        """Return the name of the file of a sample to process; None if it has none."""
        wanted = names if self.member is None else [n for n in names if split_name(n)[1] == self.member]
        return next(filter(self.accepts, wanted), None)

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


MakeProcessor = Callable[[int], SampleProcessor]
"""Makes the processor of a process from its local rank; must be picklable."""


@dataclass
class ShardWorker:
    """Writes shards, one at a time: each attempt under its own name, then `Folder.publish`."""

    folder: Folder
    processor: SampleProcessor

    def run_one(self, shard: Source, report: Report = lambda amount: None) -> Record:
        """Write a shard if it is not finished; return its record.

        Raises:
            JobError: another command has started a new run in the folder.
            DeferredError: a sample needs more memory than is free, or the source changed while it was read.
            OSError: the shard cannot be written.
        """
        with self.folder.fenced():
            return self.folder.record(shard.name) or self._write(shard, report)

    def _write(self, shard: Source, report: Report) -> Record:
        attempt, stamp = secrets.token_hex(8), shard.stamp()
        record = Record(shard.name, None, 0, 0, 0, 0, 0, "", attempt=attempt)
        if stamp is not None:
            record.source_bytes, record.source_version = stamp
        with self.folder.store.writing(f"{self.folder.run}/{shard.name}.{attempt}") as part:
            try:
                with part.open("xb") as file, self._earlier(shard, record) as earlier:
                    try:
                        self._write_samples(shard, record, earlier, file, report)
                    except ShardError as error:
                        record.problem = str(error)
                    file.write(closing_bytes(file.tell()))
                    file.flush()
                    os.fsync(file.fileno())  # before the record exists: it must not outlive its shard
                if shard.stamp() != stamp:
                    raise DeferredError(f"{shard.name}: its source changed while it was read")
                if record.samples or record.problem is None:
                    # Read back: the record describes the bytes that were written.
                    with part.open("rb") as file:
                        record.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                    record.bytes = part.stat().st_size
                else:
                    part.unlink()  # nothing could be read
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        return self.folder.publish(attempt, record)

    def _write_samples(
        self, shard: Source, record: Record, earlier: Iterator[Sample], file: BinaryIO, report: Report
    ) -> None:
        self.processor.start()
        known = next(earlier, None)
        for sample in _samples(shard):
            if known is not None and known.key == sample.key and sample.problem is None:
                files: Sequence[Member] = [(f"{known.key}.{suffix}", data) for suffix, data in known.files]
                known = next(earlier, None)
                record.samples += 1
                record.done += 1
            else:
                files = self._process(sample, record)
            file.write(b"".join(member_bytes(*member) for member in files))
            report(sample.end)
        file.write(b"".join(member_bytes(*member) for member in self.processor.finish()))

    @contextmanager
    def _earlier(self, shard: Source, record: Record) -> Iterator[Iterator[Sample]]:
        """Yield the samples that an earlier run has finished, if only its failed ones are to be processed."""
        earlier, path = self.folder.retried.get(shard.name), f"{self.folder}/{shard.name}"
        if earlier is None or not earlier.bytes or self.processor.sums:
            yield iter(())
            return
        with local_copy(path) as copy, copy.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == earlier.sha256
            if same and (earlier.source_bytes, earlier.source_version) == shard.stamp():
                record.coded_bytes, record.pixels = earlier.coded_bytes, earlier.pixels
                yield read_samples(copy, path)
            else:
                yield iter(())

    def _process(self, sample: Any, record: Record) -> Sequence[Member]:
        """Return a sample's files, none if it failed, and count it."""
        record.samples += 1
        try:
            found = self.processor.process(sample)
        except (MemoryLimitError, MemoryError) as error:
            raise DeferredError(f"{sample.key}: {reason_of(error)}") from error
        except (ValueError, OSError, RuntimeError) as error:
            if "CUDA error" in str(error):
                raise  # after a CUDA error the process cannot use the device
            reason = " ".join(str(error).split()) or reason_of(error)
            record.failures.append({"key": sample.key, "error": reason})
            return ()
        record.done += 1
        record.coded_bytes += found.coded_bytes
        record.pixels += found.pixels
        return found.files


def _samples(shard: Source) -> Iterator[Any]:
    """Read samples; read errors become ShardError, to tell them from write errors."""
    try:
        yield from shard.samples()
    except OSError as error:
        raise ShardError(reason_of(error)) from error
    except MemoryError as error:
        raise DeferredError(f"{shard.name}: not enough memory to read one of its files") from error


class ShardTask(Task):
    """A task whose items are shards; their records are files in the output folder."""

    def __init__(
        self, folder: Folder, shards: Sequence[Source], make_processor: MakeProcessor, amount: str = "B"
    ) -> None:
        super().__init__(str(folder), shards, partial(_make_worker, folder, make_processor), "shards", amount)
        self._folder = folder

    def outcome(self, item: Source) -> Record | None:
        """Return the record of a finished shard, else None."""
        return self._folder.records.get(item.name)

    def record(self, item: Source, outcome: Record) -> None:
        """Keep the record of a shard."""
        self._folder.add(outcome)

    def size(self, item: Source) -> int:
        """Return the size of a source."""
        return item.size()


def _make_worker(folder: Folder, make_processor: MakeProcessor, local_rank: int) -> ShardWorker:
    processor = make_processor(local_rank)
    folder.begin()  # only after the processor was created: a failure leaves the settings replaceable
    return ShardWorker(folder, processor)


def run_shards(
    shards: Sequence[Source],
    path: str | os.PathLike[str],
    settings: dict[str, Any],
    make_processor: MakeProcessor,
    engine: Engine,
    *,
    force: bool = False,
    retry: bool = False,
    quiet: bool = False,
    remedy: str = REMEDY,
) -> tuple[Folder, dict[str, Any]]:
    """Write shards and a manifest, or resume.

    Args:
        shards: sources; each output shard has the name of its source.
        path: output folder, a path or URL.
        settings: everything that determines the bytes; all shards of a folder have the same settings.
        make_processor: called once per process.
        engine: its number of threads, 1 if it is None, is part of the settings.
        force: replace shards made with other settings, and a finished job with the same settings. An
            unfinished job is resumed.
        retry: process the failed samples of a finished job again.

    Returns:
        The folder, and the manifest's totals.

    Raises:
        JobError: the folder or the arguments do not allow it.
        UnfinishedError: some shards are not finished.
        PartFinished: the shards of the engine's part are finished, others are not.
        OSError: the folder cannot be written to.
    """
    engine = replace(engine, threads=engine.threads or 1)
    folder = Folder(path, {**settings, "threads": engine.threads})
    folder.prepare(shards, force, retry, remedy)
    run(ShardTask(folder, shards, make_processor), engine, quiet=quiet)
    totals = folder.finish(shards)
    if totals is None:
        left = len(shards) - len(folder.records)
        raise PartFinished(f"{folder}: {left} of {len(shards)} shards are left to the other parts")
    return folder, totals
