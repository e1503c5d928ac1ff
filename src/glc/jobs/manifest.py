"""The state of a job in files: one record per finished shard, the settings, at the end manifest and failures.

```
OUT/.glc/settings.json        what the shards of OUT are made with
OUT/.glc/NAME.tar.json        record of a finished shard
OUT/.glc/NAME.tar.journal     samples done of an unfinished one (glc.jobs.journal), beside NAME.tar.part
OUT/manifest.json             once all are finished
OUT/failures.jsonl            what failed and why, if anything did
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
REMEDY = "choose another folder with -o, or replace what is there with --force"


class JobError(ValueError):
    """A job cannot be done as asked for; the message says why and what to do."""


class Stamp(NamedTuple):
    """Tells a source from one that took its place; tar files are padded, so sizes alone do not."""

    bytes: int
    mtime_ns: int


class Source(Protocol):
    """What a shard is made from."""

    @property
    def name(self) -> str:
        """Name of the shard that is written, such as `in-000.tar`."""
        ...

    def stamp(self) -> Stamp | None:
        """Return what tells its content from another; None where it is missing."""
        ...

    def size(self) -> int:
        """Return how much there is to read, in the unit of a sample's `end`; 0 where it is missing."""
        ...

    def samples(self, skip: int) -> Iterator[Any]:
        """Yield the samples in order, each with its `key` and with `end`, where it ends in the source.

        Args:
            skip: samples at the start whose content is not wanted.

        Raises:
            ShardError: the source breaks off, or is missing; what came before is good.
            OSError: it cannot be read.
        """
        ...


@dataclass
class Record:
    """A finished shard."""

    name: str
    source_bytes: int | None
    """Size of what was read, None where it was missing."""
    samples: int
    """Samples that were read: done and failed together."""
    done: int
    coded_bytes: int
    """Of all its compressed files."""
    pixels: int
    """Of all images that were coded; an image that was coded several times counts so many times."""
    bytes: int
    """Size of the shard that was written; 0 where none was, because nothing could be read."""
    sha256: str
    failures: list[dict[str, str]] = field(default_factory=list)
    """`key` and `error` of each sample that failed."""
    problem: str | None = None
    """Why the source was not read to its end; None when it was."""
    source_mtime_ns: int | None = None
    """When the source was last changed; None where it was missing, and in older records."""
    settings: str | None = None
    """Fingerprint of the settings; None in older records."""


class Folder:
    """The folder that shards are written to.

    Args:
        path: the folder.
        settings: everything that decides the bytes of its shards, in JSON's types. None takes whatever
            settings the shards were made with.
        state: name of the folder in it for the state of the job.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None, state: str = STATE) -> None:
        self.path = path
        self.notes = path / state
        self.settings = settings
        self._stored = None if settings is None else as_json({"format_version": FORMAT_VERSION, **settings})
        self._fingerprint = None if settings is None else fingerprint(self._stored)

    def target(self, shard: Source) -> Path:
        """Where a shard is written."""
        return self.path / shard.name

    def note(self, shard: Source, kind: str) -> Path:
        """The file of a kind (`json`, `journal`, `part`, `lock`) that belongs to a shard."""
        return self.notes / f"{shard.name}.{kind}"

    @property
    def settings_path(self) -> Path:
        """The file of the settings that the shards are made with."""
        return self.notes / "settings.json"

    def prepare(self, shards: Sequence[Source], force: bool, began: float, remedy: str = REMEDY) -> None:
        """Make the folder, and check that what lies in it was made with the same settings.

        Settings with which nothing was begun are replaced.

        Args:
            shards: that are to be written.
            force: replace what was made with other settings, and what was finished with the same.
            began: when the command began, in seconds since the epoch. A job finished after that is the work
                of other processes of the same command, and an unfinished one is resumed, so that `force`
                undoes nothing that was done for this command.
            remedy: what the user is told to do about shards that are in the way.

        Raises:
            JobError: the folder holds shards of other settings or origin, and `force` is not set.
            OSError: it cannot be made or written to.
        """
        self.notes.mkdir(parents=True, exist_ok=True)
        with lock(self.notes / "settings.lock", wait=True, required=False):
            found = self._read_settings()
            if found == self._stored and not (force and self._finished_before(began)):
                return
            old = [p for p in self.notes.iterdir() if p.suffix in _STATE_SUFFIXES and p != self.settings_path]
            if not force:
                if found is not None and old:
                    differ = describe_differences(found, self._stored) if found else "they cannot be read"
                    raise JobError(f"{self.path}: its shards have other settings ({differ}); {remedy}")
                for shard in shards:
                    if self.target(shard).exists():
                        raise JobError(f"{self.target(shard)}: exists; {remedy}")
            # The manifest last: until then it shows that what it counts is to be made again.
            for path in (*old, self.settings_path, self.path / FAILURES, self.path / MANIFEST):
                path.unlink(missing_ok=True)
            _write_json(self.settings_path, self._stored)

    def begin(self) -> None:
        """Note that work begins, after which other settings need `force`.

        Raises:
            JobError: see `check_settings`.
        """
        with lock(self.notes / "settings.lock", wait=True, required=False):
            self.check_settings()
            (self.notes / "begun.mark").touch()

    def check_settings(self) -> None:
        """Check that the folder is still that of these settings.

        Raises:
            JobError: another command has replaced them since `prepare`.
        """
        if not self.is_ours():
            raise JobError(f"{self.path}: another command with other settings began to write to it")

    def is_ours(self) -> bool:
        """Whether what lies here was begun with these settings."""
        found: bool = self._read_settings() == self._stored
        return found

    def _read_settings(self) -> Any:
        """Return the settings of what lies here; None without any, nothing in them when they are damaged."""
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
        """Note that a shard is finished."""
        _write_json(self.note(shard, "json"), {**asdict(record), "settings": self._fingerprint})

    def record(self, shard: Source) -> Record | None:
        """Return the record of a finished shard; None when it is unfinished, or its source has changed."""
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
        """Return the records of finished shards, by name, and remove what is left of their writing.

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
            # Of processes that were killed just before they would have removed them.
            if old.suffix in (".journal", ".part"):
                old.unlink(missing_ok=True)
        return found

    def finish(self, shards: Sequence[Source]) -> dict[str, Any]:
        """Write manifest and failures of finished shards; return the manifest's totals.

        Their content is a function of shards and settings, so it does not matter which process writes it.

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
        # A copy of a source has another time and the same content.
        left_out = ("failures", "source_mtime_ns", "settings")
        listed = [{k: v for k, v in asdict(record).items() if k not in left_out} for record in records]
        content = {"format_version": FORMAT_VERSION, "totals": totals, "settings": self.settings}
        _write_json(self.path / MANIFEST, {**content, "shards": listed})
        lines = []
        for record in records:
            if record.problem is not None:
                lines.append({"shard": record.name, "key": None, "error": record.problem})
            lines += [{"shard": record.name, **failure} for failure in record.failures]
        if lines:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_text(self.path / FAILURES, _printable(text))
        else:
            (self.path / FAILURES).unlink(missing_ok=True)
        return totals


def as_json(settings: Mapping[str, Any]) -> Any:
    """Return settings as they are read back from JSON."""
    return json.loads(json.dumps(dict(settings)))


def fingerprint(settings: Any) -> str:
    """Return what tells settings from others."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def describe_differences(before: Any, now: Any, most: int = 3) -> str:
    """Return how two settings differ, in words: the first differences, and how many more there are."""
    found = list(_differences(before, now))
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return f"{'; '.join(found[:most])}{more}"


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield what is gone, new or has another value, keys of mappings in mappings joined by dots."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            path = f"{name}.{key}" if name else str(key)
            if key not in now:
                yield f"{path} is gone"
            elif key not in before:
                yield f"{path} is new"
            else:
                yield from _differences(before[key], now[key], path)
    elif before != now:
        yield f"{name} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _printable(text: str) -> str:
    """Return a text without what UTF-8 cannot hold, such as the bytes of a file name in another encoding."""
    return text.encode("utf-8", "backslashreplace").decode()


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_text(path, _printable(text), fsync=True)
