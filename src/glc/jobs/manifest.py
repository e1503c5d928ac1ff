"""State of a job in files: settings, one record per finished shard, finally manifest and failures.

```
OUT/.glc/settings.json        settings of the job
OUT/.glc/NAME.tar.json        record of a finished shard
OUT/.glc/NAME.tar.journal     log of an unfinished shard (glc.jobs.tar_shards), beside NAME.tar.part
OUT/manifest.json             written when all shards are finished
OUT/failures.jsonl            failed samples with reasons, if any
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from glc.io.atomic import write_text
from glc.io.locks import lock

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FAILURES = "failures.jsonl"
STATE = ".glc"
_STATE_SUFFIXES = (".json", ".journal", ".part", ".mark")
REMEDY = "choose another folder with -o, or replace its content with --force"


class JobError(ValueError):
    """A job cannot run with these arguments; the message names the cause and the fix."""


class Stamp(NamedTuple):
    """Size and modification time of a source; tar padding hides changes of size, so both are compared."""

    bytes: int
    mtime_ns: int


class Source(Protocol):
    """Input of one shard."""

    @property
    def name(self) -> str:
        """Name of the output shard, such as `in-000.tar`."""
        ...

    def stamp(self) -> Stamp | None:
        """Return size and modification time; None if the source is missing."""
        ...

    def size(self) -> int:
        """Return its size in the unit of a sample's `end`; 0 if it is missing."""
        ...

    def samples(self, skip: int) -> Iterator[Any]:
        """Yield the samples in order, each with its `key` and its `end` in the source.

        Args:
            skip: number of samples at the start whose content is not needed.

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
    source_mtime_ns: int | None = None
    """Modification time of the source; None if it was missing, and in older records."""
    settings: str | None = None
    """Fingerprint of the settings; None in older records."""


class Folder:
    """Output folder of a job.

    Args:
        settings: everything that determines the bytes of its shards, in JSON's types. None: any settings.
        state: name of the subfolder for the state of the job.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None, state: str = STATE) -> None:
        self.path = path
        self.notes = path / state
        self.settings = settings
        self._stored = None if settings is None else as_json({"format_version": FORMAT_VERSION, **settings})
        self._fingerprint = None if settings is None else fingerprint(self._stored)

    def target(self, shard: Source) -> Path:
        """Return the path of a finished shard."""
        return self.path / shard.name

    def note(self, shard: Source, kind: str) -> Path:
        """Return the state file of a shard of a kind: `json`, `journal`, `part` or `lock`."""
        return self.notes / f"{shard.name}.{kind}"

    @property
    def settings_path(self) -> Path:
        """Path of the job's settings."""
        return self.notes / "settings.json"

    def prepare(self, shards: Sequence[Source], force: bool, began: float, remedy: str = REMEDY) -> None:
        """Create the folder, or check that its shards were made with the same settings.

        Settings of a job that did not start are replaced.

        Args:
            force: replace shards made with other settings, and a finished job with the same settings.
            began: start of the command, in seconds since the epoch. A job that finished later was done by
                other processes of the same command, and an unfinished one is resumed, so that `force` does
                not undo this command's own work.

        Raises:
            JobError: without `force`: the folder contains shards with other settings or of another origin.
            OSError: the folder cannot be created or written to.
        """
        self.notes.mkdir(parents=True, exist_ok=True)
        with lock(self.notes / "settings.lock", wait=True, required=False):
            found = self._read_settings()
            if found == self._stored and not (force and self._finished_before(began)):
                return
            old = [p for p in self.notes.iterdir() if p.suffix in _STATE_SUFFIXES and p != self.settings_path]
            if not force:
                if found is not None and old:
                    differ = describe_differences(found, self._stored) if found else "unreadable"
                    raise JobError(f"{self.path}: contains shards with other settings ({differ}); {remedy}")
                for shard in shards:
                    if self.target(shard).exists():
                        raise JobError(f"{self.target(shard)}: already exists; {remedy}")
            # The manifest last: if this is interrupted, the next call still sees a finished job to replace.
            for path in (*old, self.settings_path, self.path / FAILURES, self.path / MANIFEST):
                path.unlink(missing_ok=True)
            _write_json(self.settings_path, self._stored)

    def begin(self) -> None:
        """Mark the job as started; from now on other settings need `force`.

        Raises:
            JobError: see `check_settings`.
        """
        with lock(self.notes / "settings.lock", wait=True, required=False):
            self.check_settings()
            (self.notes / "begun.mark").touch()

    def check_settings(self) -> None:
        """Check that the folder still has these settings.

        Raises:
            JobError: another command has replaced them since `prepare`.
        """
        if not self.is_ours():
            raise JobError(
                f"{self.path}: another command with other settings is writing to it; choose another folder"
            )

    def is_ours(self) -> bool:
        """Whether the job in this folder has these settings."""
        found: bool = self._read_settings() == self._stored
        return found

    def _read_settings(self) -> Any:
        """Return the settings of the job in this folder; None if there is none, `{}` if they are corrupt."""
        try:
            return json.loads(self.settings_path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def _finished_before(self, began: float) -> bool:
        try:
            return (self.path / MANIFEST).stat().st_mtime < began
        except FileNotFoundError:
            return False

    def write_record(self, shard: Source, record: Record) -> None:
        """Write the record of a finished shard."""
        _write_json(self.note(shard, "json"), {**asdict(record), "settings": self._fingerprint})

    def record(self, shard: Source) -> Record | None:
        """Return the record of a finished shard; None if it is unfinished or its source has changed."""
        try:
            found = Record(**json.loads(self.note(shard, "json").read_text("utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        if self._fingerprint is not None and found.settings not in (None, self._fingerprint):
            return None
        size, mtime = shard.stamp() or (None, None)
        if found.source_bytes != size or found.source_mtime_ns not in (None, mtime):
            return None
        try:
            written = self.target(shard).stat().st_size
        except OSError:
            written = 0
        return found if written == found.bytes else None

    def records(self, shards: Sequence[Source]) -> list[Record]:
        """Return the records of finished shards, sorted by name, and remove leftover temporary files.

        Raises:
            JobError: one of them is not finished.
        """
        found = []
        for shard in sorted(shards, key=lambda shard: shard.name):
            record = self.record(shard)
            if record is None:
                raise JobError(f"{self.target(shard)}: changed after it was finished; run the command again")
            found.append(record)
        for old in self.notes.iterdir():
            # Left by processes that were killed before they removed them.
            if old.suffix in (".journal", ".part"):
                old.unlink(missing_ok=True)
        return found

    def finish(self, shards: Sequence[Source]) -> dict[str, Any]:
        """Write manifest and failures of finished shards; return the manifest's totals.

        Their content depends only on shards and settings, so any process may write them.

        Raises:
            JobError: a shard is not finished, or the counts do not add up.
        """
        records = self.records(shards)
        sums = {
            key: sum(getattr(record, key) for record in records)
            for key in ("samples", "done", "coded_bytes", "pixels", "bytes")
        }
        failed = sum(len(record.failures) for record in records)
        if sums["samples"] != sums["done"] + failed:
            raise JobError(
                f"{self.path}: {sums['samples']} samples were read, but {sums['done']} are done and "
                f"{failed} failed; remove {self.notes} and run the command again"
            )
        totals = {
            "shards": len(records),
            "broken_shards": sum(record.problem is not None for record in records),
            "samples": sums["samples"],
            "done": sums["done"],
            "failed": failed,
            "coded_bytes": sums["coded_bytes"],
            "pixels": sums["pixels"],
            "bpp": 8 * sums["coded_bytes"] / sums["pixels"] if sums["pixels"] else None,
            "bytes": sums["bytes"],
        }
        # Omitted: a copy of a source has another modification time but the same content.
        omitted = ("failures", "source_mtime_ns", "settings")
        listed = [{k: v for k, v in asdict(record).items() if k not in omitted} for record in records]
        content = {"format_version": FORMAT_VERSION, "totals": totals, "settings": self.settings}
        _write_json(self.path / MANIFEST, {**content, "shards": listed})
        lines = []
        for record in records:
            if record.problem is not None:
                lines.append({"shard": record.name, "key": None, "error": record.problem})
            lines += [{"shard": record.name, **failure} for failure in record.failures]
        if lines:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_text(self.path / FAILURES, text)
        else:
            (self.path / FAILURES).unlink(missing_ok=True)
        return totals


def as_json(settings: Mapping[str, Any]) -> Any:
    """Return settings after a round trip through JSON."""
    return json.loads(json.dumps(dict(settings)))


def fingerprint(settings: Any) -> str:
    """Return the SHA-256 of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


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


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", fsync=True)
