"""The figures of shards brought together: a summary, a table of shards and one of pictures.

Everything is read from the shards that were written, one sample at a time, in the order of their names: the
files do not depend on who measured what, and memory not on how much there is.
"""

import csv
import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glc.evaluation.codecs.base import Setting
from glc.evaluation.records import write_text
from glc.evaluation.summary import Means, header, row_of, summarise, summary_text
from glc.io.atomic import replacing
from glc.io.locks import claim
from glc.jobs.manifest import FAILURES, MANIFEST, CorpusError, Folder
from glc.jobs.tar_shards import Shard, split_name

FIGURES = "json"
"""Suffix of a sample's figures in the shards that are written."""
_LISTED = 1000
"""Failures and notes in the summary; the rest is in `failures.jsonl` and in the shards."""


def merge(
    folder: Folder,
    shards: Sequence[Shard],
    identity: Mapping[str, Any],
    settings: Sequence[Setting],
    names: Sequence[str],
    unavailable: Mapping[str, str],
    totals: Mapping[str, Any],
    count: int | None,
) -> dict[str, Any]:
    """Write `per_image.csv`, `per_shard.csv` and `summary.json` of shards that are all finished.

    Of several processes one does it; the others wait, and read what it wrote.

    Args:
        folder: that the shards were written to, with its manifest.
        shards: that were measured.
        identity: what decided the numbers.
        settings: of the codec.
        names: metrics of single pictures.
        unavailable: metrics that were not measured, with reasons.
        totals: of the manifest.
        count: pictures that the set should have; None: any number.

    Returns:
        The summary.

    Raises:
        CorpusError: the shards do not hold what the manifest counts.
    """
    path = folder.path / "summary.json"
    with claim(folder.notes / "summary.lock", wait=True):
        # The manifest has the checksum of every shard, so that what was made of these need not be made again.
        of = {
            "count": count,
            "unavailable": dict(unavailable),
            "manifest": hashlib.sha256((folder.path / MANIFEST).read_bytes()).hexdigest(),
        }
        mark = folder.notes / "merged.mark"
        found = _read(mark)
        if found and found.get("of") == of and _hashes(folder.path) == found.get("files"):
            known: dict[str, Any] = json.loads(path.read_text("utf-8"))
            return known
        with (
            replacing(folder.path / "per_image.csv") as images,
            replacing(folder.path / "per_shard.csv") as table,
        ):
            means, notes = _write_tables(folder, shards, settings, names, images, table)
        lacking = [label for label, mean in means.items() if mean.pictures != totals["done"]]
        if lacking:
            raise CorpusError(
                f"{folder.path}: {MANIFEST} counts {totals['done']} pictures and the shards hold "
                f"{means[lacking[0]].pictures} at {lacking[0]}: start anew with overwrite=true"
            )
        failed = _failures(folder, totals, count)
        data = {**identity["data"], "count": totals["samples"], "shards": totals["shards"]}
        points = [means[setting.label].point(setting) for setting in settings if totals["done"]]
        incomplete: dict[str, str] = {}
        for point in points:
            incomplete |= means[point["label"]].incomplete(point["label"])
        summary = summarise(
            {**identity, "data": data},
            pictures=totals["done"],
            failed=failed,
            unavailable=dict(unavailable),
            incomplete=incomplete,
            measured={label: mean.counts() for label, mean in means.items()},
            notes=notes,
            points=points,
        )
        write_text(path, summary_text(summary))
        write_text(mark, json.dumps({"of": of, "files": _hashes(folder.path)}))
    return summary


def _write_tables(
    folder: Folder,
    shards: Sequence[Shard],
    settings: Sequence[Setting],
    names: Sequence[str],
    images: Path,
    table: Path,
) -> tuple[dict[str, Means], list[dict[str, str]]]:
    whole = {setting.label: Means(names) for setting in settings}
    notes: list[dict[str, str]] = []
    with (
        images.open("w", newline="", encoding="utf-8", errors="backslashreplace") as image_file,
        table.open("w", newline="", encoding="utf-8") as shard_file,
    ):
        rows, lines = (csv.writer(file, lineterminator="\n") for file in (image_file, shard_file))
        rows.writerow(header(names))
        lines.writerow(["shard", "label", "pictures", "failed", "bytes", "bpp", *names])
        for shard in sorted(shards, key=lambda shard: shard.name):
            record = folder.record(shard)
            failed = 0 if record is None else len(record.failures)
            here = {setting.label: Means(names) for setting in settings}
            size = dict.fromkeys(here, 0)
            for key, figures in _figures(folder.target(shard)):
                picture = f"{_stem(shard.name)}/{key}"
                for label, entry in figures.items():
                    whole[label].add(picture, entry)
                    here[label].add(picture, entry)
                    size[label] += entry["bytes"]
                    rows.writerow(row_of(picture, label, entry, names))
                    if "note" in entry and len(notes) < _LISTED:
                        notes.append({"picture": picture, "label": label, "note": entry["note"]})
            for setting in settings:
                point = here[setting.label].point(setting)
                values = [point.get(name, "") for name in ("bpp", *names)]
                lines.writerow(
                    [shard.name, setting.label, point["pictures"], failed, size[setting.label], *values]
                )
    return whole, notes


def _figures(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield key and figures of each sample of a shard that was written; nothing where none was."""
    if not path.exists():
        return
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, suffix = split_name(member.name)
            if suffix == FIGURES:
                file = tar.extractfile(member)
                assert file is not None
                yield key, json.loads(file.read())


def _failures(folder: Folder, totals: Mapping[str, Any], count: int | None) -> list[dict[str, str]]:
    """Return pictures without figures, and what else is amiss."""
    failed: list[dict[str, str]] = []
    path, more = folder.path / FAILURES, 0
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                if len(failed) == _LISTED:
                    more += 1
                    continue
                name = line["shard"] if line["key"] is None else f"{_stem(line['shard'])}/{line['key']}"
                failed.append({"picture": name, "reason": line["error"]})
    if more:
        failed.append({"picture": f"{more} more", "reason": f"{FAILURES} has them all"})
    if count is not None and totals["samples"] != count:
        failed.append(
            {
                "picture": "number",
                "reason": f"the shards have {totals['samples']} pictures, the set has {count}: "
                "testset.count=null takes what is there",
            }
        )
    return failed


def _stem(shard: str) -> str:
    return shard.removesuffix(".tar")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _hashes(folder: Path) -> list[str] | None:
    """Return the checksums of the merged files; None where one is missing."""
    found = []
    for name in ("summary.json", "per_image.csv", "per_shard.csv"):
        if not (folder / name).is_file():
            return None
        with (folder / name).open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found
