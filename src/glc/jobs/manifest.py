"""What was done, in files: one record per shard, the settings, and at the end the manifest and the failures.

```
OUT/.glc/settings.json        with what the shards of OUT are made
OUT/.glc/NAME.tar.json        record of a shard that is finished
OUT/.glc/NAME.tar.journal     samples done of one that is not (glc.jobs.journal), beside NAME.tar.part
OUT/manifest.json             once all are finished
OUT/failures.jsonl            what was left out and why, if anything was
```
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glc.io.atomic import replacing
from glc.jobs.changes import differences
from glc.jobs.tar_shards import Shard

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FAILURES = "failures.jsonl"
NOTES = ".glc"
_NOTES = (".json", ".journal", ".part", ".mark")
"""Suffixes of what is noted of work that was begun."""
REMEDY = "choose another folder with -o, or replace what is there with --force"


class CorpusError(ValueError):
    """A collection cannot be coded as asked for; the message says why and what to do."""


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
    """Of all its `.glc` files."""
    pixels: int
    """Of all pictures that were coded; of one that was coded several times, so many times."""
    bytes: int
    """Size of the shard that was written; 0 where none was, because nothing could be read."""
    sha256: str
    failures: list[dict[str, str]] = field(default_factory=list)
    """`key` and `error` of each sample that failed."""
    problem: str | None = None
    """Why the shard was not read to its end; None when it was."""
    source_mtime_ns: int | None = None
    """When what was read was last changed; None where it was missing, and in older records."""


class Folder:
    """The folder that shards are written to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes = path / NOTES

    def target(self, shard: Shard) -> Path:
        """Where a shard is written."""
        return self.path / shard.name

    def note(self, shard: Shard, kind: str) -> Path:
        """The file of a kind (`json`, `journal`, `part`, `lock`) that belongs to a shard."""
        return self.notes / f"{shard.name}.{kind}"

    def prepare(
        self,
        settings: dict[str, Any],
        shards: Sequence[Shard],
        force: bool,
        began: float,
        remedy: str = REMEDY,
    ) -> None:
        """Make the folder, and check that what lies in it was made with the same settings.

        Call it while no other process does. Settings for which nothing was begun are replaced.

        Args:
            settings: what decides the bytes.
            shards: that are to be written.
            force: replace what was made with others, and what was finished with the same.
            began: when the command began, in seconds since the epoch. A collection finished after that is the
                work of other processes of it, and one that is not finished is gone on with, so that `force`
                undoes nothing that was done for this command.
            remedy: what the user is told to do where that is in the way.

        Raises:
            CorpusError: it was made with others, or holds shards of other origin, and `force` is not set.
            OSError: it cannot be made or written to.
        """
        self.notes.mkdir(parents=True, exist_ok=True)
        found, wanted = self._settings(), _stored(settings)
        if found == wanted and not (force and self._finished_before(began)):
            return
        notes = [old for old in self.notes.iterdir() if old.suffix in _NOTES and old != self._settings_path]
        if not force:
            if found is not None and notes:
                changed = list(differences(found, wanted)) if found else ["they cannot be read"]
                more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
                raise CorpusError(
                    f"{self.path}: its shards were made with other settings "
                    f"({'; '.join(changed[:3])}{more}): {remedy}"
                )
            for shard in shards:
                if self.target(shard).exists():
                    raise CorpusError(f"{self.target(shard)} exists: {remedy}")
        # The manifest last: until then it is seen that what it counts is to be made again.
        for old in (*notes, self._settings_path, self.path / FAILURES, self.path / MANIFEST):
            old.unlink(missing_ok=True)
        _write(self._settings_path, wanted)

    def begin(self, settings: dict[str, Any]) -> None:
        """Note that work begins, after which nobody replaces the settings unasked.

        Call it while no other process does, once all that work needs is there.

        Raises:
            CorpusError: another command has replaced the settings since `prepare`.
        """
        if self._settings() != _stored(settings):
            raise CorpusError(f"{self.path}: another command with other settings began to write to it")
        (self.notes / "begun.mark").touch()

    @property
    def _settings_path(self) -> Path:
        return self.notes / "settings.json"

    def _settings(self) -> Any:
        """Return the settings of what lies here; None without any, nothing in them when they are damaged."""
        try:
            return json.loads(self._settings_path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def _finished_before(self, began: float) -> bool:
        try:
            return (self.path / MANIFEST).stat().st_mtime < began
        except FileNotFoundError:
            return False

    def write_record(self, shard: Shard, record: Record) -> None:
        """Note that a shard is finished."""
        _write(self.note(shard, "json"), asdict(record))

    def record(self, shard: Shard) -> Record | None:
        """Return the record of a shard that is finished; None when it is not, or its source has changed."""
        try:
            found = Record(**json.loads(self.note(shard, "json").read_text("utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        stamp = shard.stamp()
        size, mtime = (None, None) if stamp is None else stamp
        if found.source_bytes != size or found.source_mtime_ns not in (None, mtime):
            return None
        try:
            written = self.target(shard).stat().st_size
        except OSError:
            written = 0
        return found if written == found.bytes else None

    def finish(self, settings: dict[str, Any], shards: Sequence[Shard]) -> dict[str, Any] | None:
        """Write manifest and failures once every shard is finished; the manifest's totals, or None before.

        Their content is a function of shards and settings, so it does not matter which process writes it.
        """
        records = [self.record(shard) for shard in sorted(shards, key=lambda shard: shard.name)]
        complete = [record for record in records if record is not None]
        if len(complete) < len(records):
            return None
        for old in self.notes.iterdir():
            # Of processes that were killed just before they would have removed them.
            if old.suffix in (".journal", ".part"):
                old.unlink(missing_ok=True)
        samples, done = (sum(getattr(record, key) for record in complete) for key in ("samples", "done"))
        failed = sum(len(record.failures) for record in complete)
        coded, pixels = (
            sum(getattr(record, key) for record in complete) for key in ("coded_bytes", "pixels")
        )
        if samples != done + failed:
            raise CorpusError(
                f"{self.path}: {samples} samples were read, but {done} are done and {failed} failed: "
                f"remove {self.notes} and run again"
            )
        totals = {
            "shards": len(complete),
            "broken_shards": sum(record.problem is not None for record in complete),
            "samples": samples,
            "done": done,
            "failed": failed,
            "coded_bytes": coded,
            "pixels": pixels,
            "bpp": 8 * coded / pixels if pixels else None,
            "bytes": sum(record.bytes for record in complete),
        }
        # A copy of a shard has another time and the same content.
        left_out = ("failures", "source_mtime_ns")
        listed = [{k: v for k, v in asdict(record).items() if k not in left_out} for record in complete]
        _write(
            self.path / MANIFEST,
            {"format_version": FORMAT_VERSION, "totals": totals, "settings": settings, "shards": listed},
        )
        lines = []
        for record in complete:
            if record.problem is not None:
                lines.append({"shard": record.name, "key": None, "error": record.problem})
            lines += [{"shard": record.name, **failure} for failure in record.failures]
        if lines:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            with replacing(self.path / FAILURES) as partial:
                partial.write_text(text, "utf-8", errors="backslashreplace")
        else:
            (self.path / FAILURES).unlink(missing_ok=True)
        return totals


def _stored(settings: dict[str, Any]) -> Any:
    """Return settings as they are read again."""
    return json.loads(json.dumps({"format_version": FORMAT_VERSION, **settings}))


def _write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as partial, open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
