"""Result files of a run: `summary.json` and `per_image.csv`, of shards also `per_shard.csv`.

They do not depend on time, interruptions or the number of processes, except for the columns `encode_seconds`
and `decode_seconds`, which results of shards omit. The measurements of shards are read from the output shards
one sample at a time, sorted by name, so that memory does not grow with their number.
"""

import csv
import hashlib
import io
import json
import math
import statistics
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load

from glc.evaluation.codecs.base import Setting
from glc.evaluation.results import FORMAT, SECONDS
from glc.evaluation.testsets import ImageSet
from glc.io.atomic import replacing, write_text
from glc.jobs.manifest import FAILURES, MANIFEST, Folder, JobError
from glc.jobs.tar_shards import split_name
from glc.metrics.quality import QualityMetrics

MEASUREMENTS = "json"
"""Suffix of a sample's measurements in the output shards."""
SETS = "set_metrics.safetensors"
"""Last file of an output shard: what metrics of a complete set have accumulated over its images."""
_LISTED = 1000
"""Largest number of failures and notes in the summary; `failures.jsonl` and the shards have all."""
_FIRST = ("image", "width", "height", "label", "bytes", "bpp")

Entry = Mapping[str, Any]
Entries = Mapping[tuple[str, str], Entry]


class Means:
    """Means over images at one setting, in constant memory."""

    _AT_ONCE = 1 << 16

    def __init__(self, names: Sequence[str]) -> None:
        self.images = 0
        self._values: dict[str, list[float]] = {name: [] for name in ("bpp", *names)}
        self._counts = dict.fromkeys(self._values, 0)
        self._not_finite: dict[str, list[str]] = {name: [] for name in names}

    def add(self, name: str, entry: Entry) -> None:
        """Add an image."""
        self.images += 1
        for key, value in {"bpp": entry["bpp"], **entry["scores"]}.items():
            if not math.isfinite(value):
                self._not_finite[key].append(name)
                continue
            values = self._values[key]
            values.append(value)
            self._counts[key] += 1
            if len(values) > self._AT_ONCE:
                values[:] = [math.fsum(values)]

    def point(self, setting: Setting) -> dict[str, Any]:
        """Return a point of the summary: the setting and its means."""
        values = {key: math.fsum(self._values[key]) / count for key, count in self.counts().items() if count}
        return {"setting": setting.as_dict(), "label": setting.label, "images": self.images, **values}

    def counts(self) -> dict[str, int]:
        """Return the number of images in each mean."""
        return {key: 0 if self._not_finite.get(key) else count for key, count in self._counts.items()}

    def incomplete(self, label: str) -> dict[str, str]:
        """Return why means do not include all images, by `metric, label`."""
        reasons = {}
        for key, not_finite in self._not_finite.items():
            if not_finite:
                # Omitting these images would bias the mean; including them makes it infinite or NaN.
                reasons[key] = (
                    f"no mean: not finite for {len(not_finite)} of {self.images} images, "
                    f"such as {not_finite[0]}"
                )
            elif not self._counts[key]:
                reasons[key] = "not defined for images of these sizes"
            elif self._counts[key] < self.images:
                over = f"over {self._counts[key]} of {self.images} images"
                reasons[key] = f"{over}: not defined for the sizes of the others"
        return {f"{key}, {label}": reason for key, reason in reasons.items()}


def write_results(
    out: Path,
    identity: Mapping[str, Any],
    settings: Sequence[Setting],
    images: ImageSet,
    entries: Entries,
    sets: Mapping[str, Mapping[str, float]],
    metrics: QualityMetrics,
    in_set: Sequence[str],
) -> dict[str, Any]:
    """Write both files of a finished run and return the summary.

    Args:
        entries: outcome of each image, by its name and the setting's label.
        sets: set metrics, by label.
        metrics: per-image metrics, in the order of the columns, with those unavailable.
        in_set: names of the set metrics.
    """
    names = metrics.names
    labels = [setting.label for setting in settings]
    partial: dict[str, str] = {}
    points, measured = [], {}
    for setting in settings:
        rows = [entries[image.name, setting.label] for image in images.images]
        rows = [row for row in rows if "failed" not in row]
        if not rows:
            continue
        means = Means(names)
        for row in rows:
            means.add(row["image"], row)
        point, counts = means.point(setting), means.counts()
        partial |= means.incomplete(setting.label)
        for name, value in sets.get(setting.label, {}).items():
            if name in in_set and math.isfinite(value):
                point[name], counts[name] = value, len(rows)
        for name in SECONDS:
            point[name] = statistics.median(row[name] for row in rows)
        points.append(point)
        measured[setting.label] = counts
    failed = _failures(images, entries, labels)
    failed_names = {failure["image"] for failure in failed}
    notes = [
        {"image": name, "label": label, "note": entry["note"]}
        for (name, label), entry in sorted(entries.items())
        if "note" in entry
    ]
    treated = {
        name: entry["treatment"] for (name, _), entry in sorted(entries.items()) if "treatment" in entry
    }
    summary = _summarise(
        identity,
        **_treatments(treated),
        images=sum(image.name not in failed_names for image in images.images),
        failed=failed,
        unavailable=dict(metrics.unavailable),
        incomplete=partial,
        measured=measured,
        notes=notes,
        points=points,
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_header(names, SECONDS))
    for image in images.images:
        for label in labels:
            entry = entries[image.name, label]
            if "failed" not in entry:
                writer.writerow(_row_of(image.name, label, entry, names, SECONDS))
    write_text(out / "per_image.csv", text.getvalue(), fsync=True)
    write_text(out / "summary.json", _summary_text(summary), fsync=True)
    return summary


def _summarise(identity: Mapping[str, Any], **found: Any) -> dict[str, Any]:
    """Return the summary of a run: its identity, then its results."""
    data = {key: value for key, value in identity["data"].items() if key != "sha256"}
    determined = {key: identity[key] for key in ("protocol", "seed", "versions")}
    return {"format": FORMAT, "codec": identity["codec"], "data": data, **determined, **found}


def _treatments(treated: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the summary's entry about images that reading converted; nothing if there are none."""
    listed = [{"image": name, "treatment": list(done)} for name, done in treated.items()]
    return {"treatments": listed} if listed else {}


def _summary_text(summary: Mapping[str, Any]) -> str:
    """Return the text of `summary.json`."""
    return json.dumps(summary, indent=1, allow_nan=False) + "\n"


def _header(names: Sequence[str], last: Sequence[str] = ()) -> list[str]:
    """Return the columns of `per_image.csv`."""
    return [*_FIRST, *names, *last]


def _row_of(
    image: str, label: str, entry: Entry, names: Sequence[str], last: Sequence[str] = ()
) -> list[Any]:
    """Return the row of an image at a setting."""
    first = {**entry, "image": image, "label": label}
    scores = [entry["scores"].get(name, "") for name in names]
    return [*(first[name] for name in _FIRST), *scores, *(entry[name] for name in last)]


def _failures(images: ImageSet, entries: Entries, labels: Sequence[str]) -> list[dict[str, str]]:
    failed = [{"image": name, "reason": reason} for name, reason in images.missing]
    for image in images.images:
        reasons = {
            label: entries[image.name, label]["failed"]
            for label in labels
            if "failed" in entries[image.name, label]
        }
        common = Counter(reasons.values())
        if len(reasons) == len(labels) and len(common) == 1:
            failed.append({"image": image.name, "reason": reasons[labels[0]]})
        else:
            failed += [
                {"image": image.name, "reason": reason, "label": label} for label, reason in reasons.items()
            ]
    return failed


def merge_shards(
    folder: Folder,
    identity: Mapping[str, Any],
    settings: Sequence[Setting],
    names: Sequence[str],
    sets: QualityMetrics | None,
    unavailable: Mapping[str, str],
    totals: Mapping[str, Any],
    count: int | None,
) -> dict[str, Any]:
    """Write `per_image.csv`, `per_shard.csv` and `summary.json` of shards that are all finished.

    Args:
        folder: folder of the output shards and their manifest.
        sets: metrics of complete sets.
        count: expected number of images; None: any.

    Returns:
        The summary.

    Raises:
        JobError: the shards do not match the manifest.
    """
    out = Path(str(folder))
    # The manifest has the checksum of every shard: if it is unchanged, the files are up to date.
    of = {
        "count": count,
        "unavailable": dict(unavailable),
        "manifest": hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest(),
    }
    mark = out / folder.run / "merged.mark"
    found = _read(mark)
    if found and found.get("of") == of and _hashes(out) == found.get("files"):
        known: dict[str, Any] = json.loads((out / "summary.json").read_text("utf-8"))
        return known
    with replacing(out / "per_image.csv") as images, replacing(out / "per_shard.csv") as table:
        means, notes, treated = _write_tables(folder, settings, names, images, table)
    lacking = [label for label, mean in means.items() if mean.images != totals["done"]]
    if lacking:
        raise JobError(
            f"{out}: {MANIFEST} counts {totals['done']} images, the shards contain "
            f"{means[lacking[0]].images} at {lacking[0]}; start over with overwrite=true"
        )
    failed = _shard_failures(out, totals, count)
    data = {**identity["data"], "count": totals["samples"], "shards": totals["shards"]}
    points = [means[setting.label].point(setting) for setting in settings if totals["done"]]
    incomplete: dict[str, str] = {}
    measured = {label: mean.counts() for label, mean in means.items()}
    reasons = dict(unavailable)
    for point in points:
        label = point["label"]
        incomplete |= means[label].incomplete(label)
        for name, value in {} if sets is None else _merge_sets(folder, sets, label).items():
            if math.isfinite(value):
                point[name], measured[label][name] = value, means[label].images
        reasons |= {} if sets is None else sets.unavailable
    summary = _summarise(
        {**identity, "data": data},
        **_treatments(treated),
        images=totals["done"],
        failed=failed,
        unavailable=reasons,
        incomplete=incomplete,
        measured=measured,
        notes=notes,
        points=points,
    )
    write_text(out / "summary.json", _summary_text(summary), fsync=True)
    write_text(mark, json.dumps({"of": of, "files": _hashes(out)}), fsync=True)
    return summary


def _merge_sets(folder: Folder, sets: QualityMetrics, label: str) -> dict[str, float]:
    """Return the set metrics at a setting, merged from all shards in the order of their names."""
    sets.reset()
    for name in sorted(folder.records):
        for member, data in _members(Path(str(folder), name), SETS):
            if member == SETS:
                states = load(data).items()
                sets.merge({k.partition("/")[2]: v for k, v in states if k.partition("/")[0] == label})
    return {name: float(f"{value.item():.9g}") for name, value in sets.compute().items()}


def _write_tables(
    folder: Folder,
    settings: Sequence[Setting],
    names: Sequence[str],
    images: Path,
    table: Path,
) -> tuple[dict[str, Means], list[dict[str, str]], dict[str, list[str]]]:
    total = {setting.label: Means(names) for setting in settings}
    notes: list[dict[str, str]] = []
    treated: dict[str, list[str]] = {}
    with (
        images.open("w", newline="", encoding="utf-8", errors="backslashreplace") as image_file,
        table.open("w", newline="", encoding="utf-8", errors="backslashreplace") as shard_file,
    ):
        rows, lines = (csv.writer(file, lineterminator="\n") for file in (image_file, shard_file))
        rows.writerow(_header(names))
        lines.writerow(["shard", "label", "images", "failed", "bytes", "bpp", *names])
        for shard, record in sorted(folder.records.items()):
            here = {setting.label: Means(names) for setting in settings}
            size = dict.fromkeys(here, 0)
            for member, text in _members(Path(str(folder), shard), f".{MEASUREMENTS}"):
                image, measurements = f"{_stem(shard)}/{split_name(member)[0]}", json.loads(text)
                for label, entry in measurements.items():
                    total[label].add(image, entry)
                    here[label].add(image, entry)
                    size[label] += entry["bytes"]
                    rows.writerow(_row_of(image, label, entry, names))
                    if "treatment" in entry and len(treated) < _LISTED:
                        treated[image] = entry["treatment"]
                    if "note" in entry and len(notes) < _LISTED:
                        notes.append({"image": image, "label": label, "note": entry["note"]})
            for setting in settings:
                point = here[setting.label].point(setting)
                values = [point.get(name, "") for name in ("bpp", *names)]
                failed = len(record.failures)
                lines.writerow([shard, setting.label, point["images"], failed, size[setting.label], *values])
    return total, notes, treated


def _members(path: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files of an output shard with a suffix; none if it does not exist."""
    if not path.exists():
        return
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.name.endswith(suffix):
                file = tar.extractfile(member)
                assert file is not None
                yield member.name, file.read()


def _shard_failures(out: Path, totals: Mapping[str, Any], count: int | None) -> list[dict[str, str]]:
    """Return failed images and a wrong number of images."""
    failed: list[dict[str, str]] = []
    path, more = out / FAILURES, 0
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                if len(failed) == _LISTED:
                    more += 1
                    continue
                name = line["shard"] if line["key"] is None else f"{_stem(line['shard'])}/{line['key']}"
                failed.append({"image": name, "reason": line["error"]})
    if more:
        failed.append({"image": f"{more} more", "reason": f"listed in {FAILURES}"})
    if count is not None and totals["samples"] != count:
        failed.append(
            {
                "image": "number",
                "reason": f"the shards have {totals['samples']} images, the set has {count}; "
                "testset.count=null accepts any number",
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
    """Return the checksums of the merged files; None if one is missing."""
    found = []
    for name in ("summary.json", "per_image.csv", "per_shard.csv"):
        if not (folder / name).is_file():
            return None
        with (folder / name).open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found
