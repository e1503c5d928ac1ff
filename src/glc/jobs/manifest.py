"""State of a job in its output folder: runs, a record per finished shard, finally manifest and failures.

```
OUT/.glc/run-000001.json           settings of a run, and the name of its folder, RUN
OUT/.glc/RUN/NAME.tar.ATTEMPT      a finished attempt, until it is moved to OUT/NAME.tar
OUT/.glc/RUN/NAME.tar.json         record of a finished shard; the first attempt that creates it wins
OUT/.glc/RUN/records.jsonl         a copy of most records in one file
OUT/NAME.tar, OUT/manifest.json, OUT/failures.jsonl
```

Creating the record is the only step that decides, and it is atomic. The move that follows can be repeated by
any process. New settings, `force`, retries and changed sources start a new run, which takes over the records
that are still true and fences the folders of all earlier runs: processes that still work on those can no
longer create a record or move a file. Nothing depends on clocks or locks.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from glc.io.names import encode_text
from glc.jobs.storage import Stamp, open_store
from glc.jobs.storage import stamp as stamp_of

FORMAT_VERSION = 2
MANIFEST_VERSION = 1
MANIFEST = "manifest.json"
FAILURES = "failures.jsonl"
STATE = ".glc"
_RECORDS = "records.jsonl"
_RETRY = "retry.jsonl"
_OLD = "settings.json"
"""Settings of jobs of glc 0.1."""
_COMPACTED = 1000
"""New records after which `records.jsonl` is written again."""
REMEDY = "choose another folder with -o, or replace its content with --force"


class JobError(ValueError):
    """A job cannot run with these arguments; the message names the cause and the fix."""


class Source(Protocol):
    """Input of one shard."""

    @property
    def name(self) -> str:
        """Name of the output shard, such as `in-000.tar`."""
        ...

    def stamp(self) -> Stamp | None:
        """Return size and version; None if the source is missing."""
        ...

    def size(self) -> int:
        """Return its size in the unit of a sample's `end`; 0 if it is missing."""
        ...

    def samples(self) -> Iterator[Any]:
        """Yield the samples in order, each with its `key` and its `end` in the source.

        Raises:
            ShardError: the source is truncated or missing; earlier samples are valid.
            OSError: it cannot be read.
        """
        ...


@dataclass
class Record:
    """Record of a finished shard."""

    name: str
    source_bytes: int | None
    """Size of the source; None if it was missing."""
    samples: int
    """Samples read: done plus failed."""
    done: int
    coded_bytes: int
    """Total size of its compressed files."""
    pixels: int
    """Total pixels of coded images; an image counts once per coding."""
    bytes: int
    """Size of the output shard; 0 if nothing could be read and none was written."""
    sha256: str
    failures: list[dict[str, str]] = field(default_factory=list)
    """`key` and `error` of each sample that failed."""
    problem: str | None = None
    """Why the source was not read completely; None if it was."""
    source_version: str | None = None
    """See `Stamp`; None if the source was missing."""
    attempt: str = ""
    """Name of the attempt that wrote the shard."""


class Folder:
    """Output folder of a job, at a path or URL.

    Args:
        settings: everything that determines the bytes of its shards, in JSON's types.
        state: name of the subfolder for the state of the job.
    """

    def __init__(self, path: str | PathLike[str], settings: Mapping[str, Any], state: str = STATE) -> None:
        self.store = open_store(path)
        self.settings = settings
        self.state = state
        self.stored: Any = as_json({"format_version": FORMAT_VERSION, **settings})
        self.run = ""
        """Folder of the run, below the root; empty before `prepare`."""
        self.records: dict[str, Record] = {}
        """Records of finished shards by name, as of the last `load`."""
        self.retried: dict[str, Record] = {}
        """Records of shards of which only the failed samples are processed again."""
        self._new = 0

    def __str__(self) -> str:
        return str(self.store)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "records": {}}  # other processes look at one shard at a time

    def prepare(
        self, shards: Sequence[Source], force: bool = False, retry: bool = False, remedy: str = REMEDY
    ) -> None:
        """Join the folder's run if it has the same settings, else start a new one; load its records.

        A run that has not begun is replaced.

        Args:
            force: replace a run with other settings, and a finished one with the same settings. An unfinished
                one with the same settings is resumed.
            retry: process the failed samples of a finished run again.

        Raises:
            JobError: without `force`: the folder contains shards with other settings or of another origin.
            OSError: the folder cannot be created or written to.
        """
        self.store.makedirs(self.state)
        while True:
            number, current, found = self.current()
            if current and found == self.stored:
                self.run, self.records = f"{self.state}/{current}", {}
                self._fence_before(number)
                changed = self.load(shards)
                left = [shard for shard in shards if shard.name not in self.records]
                failed = [record for record in self.records.values() if record.failures]
                if left or not (force or (retry and failed)):
                    if not changed:
                        for name in (MANIFEST, FAILURES) if left else ():
                            with suppress(FileNotFoundError):
                                self.store.move(name, f"{self.run}/old")
                        return
                    self._start(number + 1, self.records.values())
                else:
                    kept = [] if force else [r for r in self.records.values() if not r.failures]
                    self._start(number + 1, kept, () if force else failed)
                force = retry = False  # done, here or by another process at the same time
                continue
            if not force:
                if found is not None and (not current or self._has_begun(current)):
                    differ = describe_differences(found, self.stored) if found else "unreadable"
                    raise JobError(f"{self}: contains shards with other settings ({differ}); {remedy}")
                outputs = {} if found is not None else self.store.list("")
                for shard in shards:
                    if shard.name in outputs:
                        raise JobError(f"{self}/{shard.name}: already exists; {remedy}")
            self._start(number + 1)
            force = retry = False

    def current(self) -> tuple[int, str, Any]:
        """Return number, folder and settings of the newest run; of 0.1's jobs, the settings only."""
        numbers = self._runs()
        if not numbers:
            return 0, "", _parsed(self.store.read(f"{self.state}/{_OLD}"))
        content = _parsed(self.store.read(self._run_file(numbers[-1]))) or {}
        return numbers[-1], str(content.get("folder", "")), content.get("settings", {})

    def _runs(self) -> list[int]:
        names = self.store.list(self.state)
        return sorted(int(n[4:-5]) for n in names if n.startswith("run-") and n[4:-5].isdecimal())

    def _run_file(self, number: int) -> str:
        return f"{self.state}/run-{number:06d}.json"

    def _has_begun(self, folder: str) -> bool:
        return bool(self.store.list(f"{self.state}/{folder}").keys() - {_RETRY})

    def _start(self, number: int, kept: Iterable[Record] = (), retried: Iterable[Record] = ()) -> None:
        """Start a run, unless another process starts one with this number."""
        folder = secrets.token_hex(8)
        self.store.makedirs(f"{self.state}/{folder}")
        for name, records in ((_RECORDS, [*kept]), (_RETRY, [*retried])):
            if records:
                self.store.create(f"{self.state}/{folder}/{name}", _lines(map(asdict, records)))
        content = {"folder": folder, "settings": self.stored}
        if not self.store.create(self._run_file(number), encode_text(json.dumps(content, indent=1) + "\n")):
            self.store.fence(f"{self.state}/{folder}")

    def _fence_before(self, number: int) -> None:
        """Stop processes that work on earlier runs. Every process does so before it works on this one."""
        for old in self._runs():
            if old < number:
                content = _parsed(self.store.read(self._run_file(old))) or {}
                if content.get("folder"):
                    self.store.fence(f"{self.state}/{content['folder']}")
        for name in self.store.list(self.state).keys() - {self._run_file(number).rpartition("/")[2]}:
            if not name.startswith("run-") or int(name[4:-5]) < number:  # others are of glc 0.1
                self.store.remove(f"{self.state}/{name}")

    def load(self, shards: Sequence[Source]) -> bool:
        """Read the records of finished shards; return whether others are no longer true.

        A record is true if its source is unchanged and its shard is in place. A shard that was not moved into
        place, because a process was killed, is moved now.
        """
        names = self.store.list(self.run)
        # Within a run a record never changes, so it is read once.
        found = {r.name: r for r in (*self._read_lines(_RECORDS), *self.records.values())}
        self.retried = {r.name: r for r in self._read_lines(_RETRY)}
        outputs = self.store.list("")
        self.records, changed = {}, False
        for shard in shards:
            record = found.get(shard.name)
            if record is None and f"{shard.name}.json" in names:
                record = self.record(shard.name)
            if record is None:
                continue
            if outputs.get(shard.name, 0) != record.bytes or f"{shard.name}.{record.attempt}" in names:
                self._place(record)
                placed = stamp_of(f"{self}/{shard.name}")
                outputs[shard.name] = 0 if placed is None else placed.bytes
            stamp = shard.stamp()
            known = None if record.source_bytes is None else (record.source_bytes, record.source_version)
            if known == stamp and outputs.get(shard.name, 0) == record.bytes:
                self.records[shard.name] = record
            else:
                changed = True
        return changed

    def _read_lines(self, name: str) -> list[Record]:
        content = self.store.read(f"{self.run}/{name}") or b""
        return [Record(**json.loads(line)) for line in content.splitlines()]

    def record(self, name: str) -> Record | None:
        """Return the record of a shard that this run has finished; None if there is none."""
        found = _parsed(self.store.read(f"{self.run}/{name}.json"))
        return Record(**found) if found else None

    def begin(self) -> None:
        """Mark the run as begun; from now on other settings need `force`."""
        with self.fenced():
            self.store.create(f"{self.run}/begun.mark", b"")

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """Report a missing folder of the run as what it means: another command has started a new run."""
        try:
            yield
        except FileNotFoundError:
            self.check()
            raise

    def check(self) -> None:
        """Check that the run is the newest.

        Raises:
            JobError: another command has started a new run in the folder.
        """
        if f"{self.state}/{self.current()[1]}" != self.run:
            raise JobError(
                f"{self}: another command has started anew there, with other settings, --force or changed "
                "sources; choose another folder"
            )

    def publish(self, attempt: str, record: Record) -> Record:
        """Publish an attempt, a file `NAME.ATTEMPT` in the folder of the run, unless another one was.

        Returns:
            The record of the shard: of this attempt or of the one that won.

        Raises:
            JobError: another command has started a new run in the folder.
        """
        with self.fenced():
            content = encode_text(json.dumps(asdict(record), ensure_ascii=False))
            if not self.store.create(f"{self.run}/{record.name}.json", content):
                self.store.remove(f"{self.run}/{record.name}.{attempt}")
                other = self.record(record.name)
                assert other is not None
                record = other
            self._place(record)
        return record

    def _place(self, record: Record) -> None:
        """Move a published attempt into place unless that was done; without output, move an old one away."""
        attempt = f"{self.run}/{record.name}.{record.attempt}"
        try:
            if not isinstance(self.store.root, Path):
                self.check()
            if record.bytes:
                self.store.move(attempt, record.name)
            else:
                self.store.move(record.name, f"{attempt}.old")
        except FileNotFoundError:
            self.check()

    def add(self, record: Record) -> None:
        """Keep a new record in memory, and from time to time all in one file."""
        self.records[record.name] = record
        self._new += 1
        if self._new % _COMPACTED == 0:
            self._replace(_RECORDS, _lines(map(asdict, self.records.values())), f"{self.run}/{_RECORDS}")

    def _replace(self, name: str, content: bytes, to: str) -> None:
        """Write a file through the folder of the run, so that processes of an earlier run cannot."""
        part = f"{self.run}/{name}.{secrets.token_hex(8)}"
        with self.fenced():
            self.store.create(part, content)
            self.store.move(part, to)

    def finish(self, shards: Sequence[Source]) -> dict[str, Any] | None:
        """Write manifest and failures if all shards are finished; return the manifest's totals, else None.

        Their content depends only on shards and settings, so any process may write them.

        Raises:
            JobError: another command has started a new run in the folder, or a shard was changed.
        """
        with self.fenced():
            changed = self.load(shards)
        if changed:
            raise JobError(
                f"{self}: a source or a shard changed after it was finished; run the command again"
            )
        if len(self.records) < len(shards):
            return None
        records = sorted(self.records.values(), key=lambda record: record.name)
        totals = totals_of(records)
        # Omitted: what differs between copies of a source and between attempts with the same bytes.
        omitted = ("failures", "source_version", "attempt")
        listed = [{k: v for k, v in asdict(record).items() if k not in omitted} for record in records]
        content = {"format_version": MANIFEST_VERSION, "totals": totals, "settings": self.settings}
        text = json.dumps({**content, "shards": listed}, indent=1, ensure_ascii=False) + "\n"
        lines: list[dict[str, Any]] = []
        for record in records:
            if record.problem is not None:
                lines.append({"shard": record.name, "key": None, "error": record.problem})
            lines += [{"shard": record.name, **failure} for failure in record.failures]
        self._replace(_RECORDS, _lines(map(asdict, records)), f"{self.run}/{_RECORDS}")
        if lines:
            self._replace(FAILURES, _lines(lines), FAILURES)
        else:
            self.store.remove(FAILURES)
        self._replace(MANIFEST, encode_text(text), MANIFEST)
        for left in self.store.list(self.run):
            if not left.endswith((".json", ".jsonl", ".mark")):  # attempts that were killed or came second
                self.store.remove(f"{self.run}/{left}")
        return totals


def totals_of(records: Sequence[Record]) -> dict[str, Any]:
    """Return the totals of a manifest."""
    sums = {
        key: sum(getattr(record, key) for record in records)
        for key in ("samples", "done", "coded_bytes", "pixels", "bytes")
    }
    return {
        "shards": len(records),
        "broken_shards": sum(record.problem is not None for record in records),
        "samples": sums["samples"],
        "done": sums["done"],
        "failed": sum(len(record.failures) for record in records),
        "coded_bytes": sums["coded_bytes"],
        "pixels": sums["pixels"],
        "bpp": 8 * sums["coded_bytes"] / sums["pixels"] if sums["pixels"] else None,
        "bytes": sums["bytes"],
    }


def as_json(settings: Mapping[str, Any]) -> Any:
    """Return settings after a round trip through JSON."""
    return json.loads(json.dumps(dict(settings)))


def describe_differences(before: Any, now: Any, most: int = 3) -> str:
    """Describe how two settings differ: the first `most` differences and the number of others."""
    found = list(_differences(before, now))
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return f"{'; '.join(found[:most])}{more}"


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield removed, added and changed keys; keys of nested mappings are joined by dots."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            path = f"{name}.{key}" if name else str(key)
            if key not in now:
                yield f"{path} was removed"
            elif key not in before:
                yield f"{path} is new"
            else:
                yield from _differences(before[key], now[key], path)
    elif before != now:
        yield f"{name} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lines(lines: Iterable[Any]) -> bytes:
    return encode_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _parsed(content: bytes | None) -> Any:
    """Return the object in a JSON file; None if the file does not exist, `{}` if it is corrupt."""
    try:
        found = None if content is None else json.loads(content)
    except ValueError:
        return {}
    return found if found is None or isinstance(found, dict) else {}
