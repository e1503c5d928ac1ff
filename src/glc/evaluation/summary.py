"""The result files of a run: `summary.json` and `per_image.csv`.

Nothing in them depends on when, in how many pieces or by how many processes the pictures were measured, but
the columns `encode_seconds` and `decode_seconds`, which those of shards do not have.
"""

import csv
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glc.evaluation.codecs.base import Setting
from glc.evaluation.records import write_text
from glc.evaluation.testsets import PictureSet

FORMAT = 1
"""Version of both files."""
SECONDS = ("encode_seconds", "decode_seconds")
_FIRST = ("picture", "width", "height", "label", "bytes", "bpp")

Entry = Mapping[str, Any]
Entries = Mapping[tuple[str, str], Entry]


class Means:
    """The means of pictures at one setting, of any number of them in little memory.

    Args:
        names: of the metrics of single pictures, in the order of the columns.
    """

    _AT_ONCE = 1 << 16

    def __init__(self, names: Sequence[str]) -> None:
        self.pictures = 0
        self._values: dict[str, list[float]] = {name: [] for name in ("bpp", *names)}
        self._counts = dict.fromkeys(self._values, 0)
        self._strange: dict[str, list[str]] = {name: [] for name in names}

    def add(self, name: str, entry: Entry) -> None:
        """Count a picture of a name in."""
        self.pictures += 1
        for key, value in {"bpp": entry["bpp"], **entry["scores"]}.items():
            if not math.isfinite(value):
                self._strange[key].append(name)
                continue
            values = self._values[key]
            values.append(value)
            self._counts[key] += 1
            if len(values) > self._AT_ONCE:
                values[:] = [math.fsum(values)]

    def point(self, setting: Setting) -> dict[str, Any]:
        """Return the beginning of a point of the summary: the setting and its means."""
        values = {key: math.fsum(self._values[key]) / count for key, count in self.counts().items() if count}
        return {"setting": setting.as_dict(), "label": setting.label, "pictures": self.pictures, **values}

    def counts(self) -> dict[str, int]:
        """Return over how many pictures each mean is."""
        return {key: 0 if self._strange.get(key) else count for key, count in self._counts.items()}

    def incomplete(self, label: str) -> dict[str, str]:
        """Return why a mean is not over all pictures, by `metric, label`."""
        reasons = {}
        for key, strange in self._strange.items():
            whole = self.pictures
            if strange:
                # A mean that leaves them out would flatter or hide; one that has them in is no number.
                reasons[key] = (
                    f"no mean: not finite for {len(strange)} of {whole} pictures, such as {strange[0]}"
                )
            elif not self._counts[key]:
                reasons[key] = "not defined for pictures of these sizes"
            elif self._counts[key] < self.pictures:
                over = f"over {self._counts[key]} of {whole} pictures"
                reasons[key] = f"{over}: not defined for the sizes of the others"
        return {f"{key}, {label}": reason for key, reason in reasons.items()}


def write_results(
    out: Path,
    identity: Mapping[str, Any],
    settings: Sequence[Setting],
    pictures: PictureSet,
    entries: Entries,
    sets: Mapping[str, Mapping[str, float]],
    names: Sequence[str],
    in_set: Sequence[str],
    unavailable: Mapping[str, str],
) -> dict[str, Any]:
    """Write both files of a finished run and return the summary.

    Args:
        out: the run's folder.
        identity: what decided the numbers.
        settings: of the codec.
        pictures: the set.
        entries: what came of each picture, by its name and the setting's label.
        sets: metrics of the whole set, by label.
        names: metrics of single pictures, in the order of the columns.
        in_set: metrics of the whole set.
        unavailable: metrics that could not be made, with reasons.
    """
    labels = [setting.label for setting in settings]
    partial: dict[str, str] = {}
    points, measured = [], {}
    for setting in settings:
        rows = [entries[picture.name, setting.label] for picture in pictures.pictures]
        rows = [row for row in rows if "failed" not in row]
        if not rows:
            continue
        means = Means(names)
        for row in rows:
            means.add(row["picture"], row)
        point, counts = means.point(setting), means.counts()
        partial |= means.incomplete(setting.label)
        for name, value in sets.get(setting.label, {}).items():
            if name in in_set and math.isfinite(value):
                point[name], counts[name] = value, len(rows)
        for name in SECONDS:
            point[name] = statistics.median(row[name] for row in rows)
        points.append(point)
        measured[setting.label] = counts
    failed = _failures(pictures, entries, labels)
    at_fault = {failure["picture"] for failure in failed}
    notes = [
        {"picture": name, "label": label, "note": entry["note"]}
        for (name, label), entry in sorted(entries.items())
        if "note" in entry
    ]
    summary = summarise(
        identity,
        pictures=sum(picture.name not in at_fault for picture in pictures.pictures),
        failed=failed,
        unavailable=dict(unavailable),
        incomplete=partial,
        measured=measured,
        notes=notes,
        points=points,
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header(names, SECONDS))
    for picture in pictures.pictures:
        for label in labels:
            entry = entries[picture.name, label]
            if "failed" not in entry:
                writer.writerow(row_of(picture.name, label, entry, names, SECONDS))
    write_text(out / "per_image.csv", text.getvalue())
    write_text(out / "summary.json", summary_text(summary))
    return summary


def summarise(identity: Mapping[str, Any], **found: Any) -> dict[str, Any]:
    """Return the summary of a run: what decided the numbers, then what was found."""
    data = {key: value for key, value in identity["data"].items() if key != "sha256"}
    decided = {key: identity[key] for key in ("protocol", "seed", "versions")}
    return {"format": FORMAT, "codec": identity["codec"], "data": data, **decided, **found}


def summary_text(summary: Mapping[str, Any]) -> str:
    """Return what `summary.json` holds."""
    return json.dumps(summary, indent=1, allow_nan=False) + "\n"


def header(names: Sequence[str], last: Sequence[str] = ()) -> list[str]:
    """Return the columns of `per_image.csv`."""
    return [*_FIRST, *names, *last]


def row_of(
    picture: str, label: str, entry: Entry, names: Sequence[str], last: Sequence[str] = ()
) -> list[Any]:
    """Return the row of a picture at a setting."""
    first = {**entry, "picture": picture, "label": label}
    scores = [entry["scores"].get(name, "") for name in names]
    return [*(first[name] for name in _FIRST), *scores, *(entry[name] for name in last)]


def _failures(pictures: PictureSet, entries: Entries, labels: Sequence[str]) -> list[dict[str, str]]:
    failed = [{"picture": name, "reason": reason} for name, reason in pictures.missing]
    for picture in pictures.pictures:
        reasons = {
            label: entries[picture.name, label]["failed"]
            for label in labels
            if "failed" in entries[picture.name, label]
        }
        common = Counter(reasons.values())
        if len(reasons) == len(labels) and len(common) == 1:
            failed.append({"picture": picture.name, "reason": reasons[labels[0]]})
        else:
            failed += [
                {"picture": picture.name, "reason": reason, "label": label}
                for label, reason in reasons.items()
            ]
    return failed
