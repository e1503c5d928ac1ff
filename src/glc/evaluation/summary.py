"""The result files of a run: `summary.json` and `per_image.csv`.

Nothing in them depends on when, in how many pieces or by how many processes the pictures were measured, but
the columns `encode_seconds` and `decode_seconds`.
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
from glc.evaluation.sets import PictureSet

FORMAT = 1
"""Version of both files."""

Entry = Mapping[str, Any]
Entries = Mapping[tuple[str, str], Entry]


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
        point: dict[str, Any] = {
            "setting": setting.as_dict(),
            "label": setting.label,
            "pictures": len(rows),
            "bpp": math.fsum(row["bpp"] for row in rows) / len(rows),
        }
        counts = {"bpp": len(rows)}
        for name in names:
            value, counts[name], reason = _mean(rows, name)
            if value is not None:
                point[name] = value
            if reason:
                partial[f"{name}, {setting.label}"] = reason
        for name, value in sets.get(setting.label, {}).items():
            if name in in_set and math.isfinite(value):
                point[name], counts[name] = value, len(rows)
        for name in ("encode_seconds", "decode_seconds"):
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
    data = {key: value for key, value in identity["data"].items() if key != "sha256"}
    summary = {
        "format": FORMAT,
        "codec": identity["codec"],
        "data": data,
        "protocol": identity["protocol"],
        "seed": identity["seed"],
        "versions": identity["versions"],
        "pictures": sum(picture.name not in at_fault for picture in pictures.pictures),
        "failed": failed,
        "unavailable": dict(unavailable),
        "incomplete": partial,
        "measured": measured,
        "notes": notes,
        "points": points,
    }
    write_text(out / "per_image.csv", _table(pictures, entries, labels, names))
    write_text(out / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return summary


def _mean(rows: Sequence[Entry], name: str) -> tuple[float | None, int, str | None]:
    """Return the mean of a score, over how many pictures it is, and why it is not over all, if so."""
    values = [row["scores"][name] for row in rows if name in row["scores"]]
    if not values:
        return None, 0, "not defined for pictures of these sizes"
    strange = [row["picture"] for row in rows if not math.isfinite(row["scores"].get(name, 0.0))]
    if strange:
        # A mean that leaves them out would flatter or hide; one that has them in is no number.
        return (
            None,
            0,
            f"no mean: not finite for {len(strange)} of {len(rows)} pictures, such as {strange[0]}",
        )
    reason = None
    if len(values) < len(rows):
        reason = f"over {len(values)} of {len(rows)} pictures: not defined for the sizes of the others"
    return math.fsum(values) / len(values), len(values), reason


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


def _table(pictures: PictureSet, entries: Entries, labels: Sequence[str], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    first = ["picture", "width", "height", "label", "bytes", "bpp"]
    last = ["encode_seconds", "decode_seconds"]
    writer.writerow([*first, *names, *last])
    for picture in pictures.pictures:
        for label in labels:
            entry = entries[picture.name, label]
            if "failed" not in entry:
                scores = [entry["scores"].get(name, "") for name in names]
                writer.writerow([*(entry[name] for name in first), *scores, *(entry[name] for name in last)])
    return text.getvalue()
