"""What an evaluation run left in its folder, read back and checked."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FORMAT = 1
SUMMARY = "summary.json"
PER_IMAGE = "per_image.csv"
SECONDS = ("encode_seconds", "decode_seconds")
_NOT_A_VALUE = ("setting", "label", "images")
_NO_METRIC = ("image", "label", "width", "height", "bytes")


class ResultsError(ValueError):
    """A run's folder cannot be used; the message names the file, the key and what to do."""


@dataclass(frozen=True)
class Metric:
    """How a metric is called and read."""

    name: str
    title: str
    higher_is_better: bool | None
    """None where it is not known."""
    digits: int
    """Decimals in tables."""
    unit: str = ""

    @property
    def heading(self) -> str:
        """The title with the unit, and an arrow that says which way is better."""
        unit = f" ({self.unit})" if self.unit else ""
        arrow = "" if self.higher_is_better is None else " ↑" if self.higher_is_better else " ↓"
        return f"{self.title}{unit}{arrow}"


_METRICS = (
    Metric("bpp", "bpp", False, 4),
    Metric("psnr", "PSNR", True, 2, "dB"),
    Metric("ms_ssim", "MS-SSIM", True, 4),
    Metric("lpips", "LPIPS", False, 4),
    Metric("dists", "DISTS", False, 4),
    Metric("fid", "FID", False, 2),
    Metric("kid", "KID", False, 5),
    Metric("fd_dinov2", "FD-DINOv2", False, 2),
    Metric("cmmd", "CMMD", False, 4),
)


def metric(name: str) -> Metric:
    """Return how to read the metric of a key; `fid_64` is read as `fid`."""
    base = _base(name)
    if base is None:
        return Metric(name, name, None, 4)
    variant = name.removeprefix(base.name).strip("_").replace("_", " ")
    title = f"{base.title}, {variant}" if variant else base.title
    return replace(base, name=name, title=title)


def _base(name: str) -> Metric | None:
    fitting = (known for known in _METRICS if name == known.name or name.startswith(f"{known.name}_"))
    return max(fitting, key=lambda known: len(known.name), default=None)


def _in_order(names: Iterable[str]) -> list[str]:
    def place(name: str) -> tuple[int, str]:
        base = _base(name)
        return (_METRICS.index(base) if base else len(_METRICS), name)

    return sorted(set(names) - set(SECONDS), key=place)


@dataclass(frozen=True)
class Point:
    """The means of one setting of a codec over a set."""

    label: str
    setting: Mapping[str, Any]
    images: int
    """How many images the means are over."""
    bpp: float
    values: Mapping[str, float]
    """Metrics and median seconds, by their keys; one that was not measured is not there."""


@dataclass(frozen=True)
class Row:
    """One image at one setting."""

    image: str
    label: str
    width: int
    height: int
    bytes: int
    bpp: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Results:
    """One evaluation run: a codec at several settings on one set."""

    folder: Path
    name: str
    kind: str
    summary: Mapping[str, Any]
    """The whole of `summary.json`."""
    points: Sequence[Point]
    """By rate, lowest first."""
    rows: Sequence[Row]

    @property
    def data_name(self) -> str:
        """The set's name."""
        return str(self.summary["data"]["name"])

    @property
    def images(self) -> int:
        """Images of the run, those that failed included where the set's size is known."""
        return int(self.summary["data"].get("count") or self.summary["images"])

    @property
    def failed(self) -> Sequence[Mapping[str, str]]:
        """Images without results: `image` and `reason` each."""
        return list(self.summary["failed"])

    @property
    def unavailable(self) -> Mapping[str, str]:
        """Metrics that could not be measured, with the reason."""
        return dict(self.summary["unavailable"])

    @property
    def incomplete(self) -> Mapping[str, str]:
        """Means that lack images or are missing, by `metric, label`, with the reason."""
        return dict(self.summary.get("incomplete") or {})

    @property
    def has_images(self) -> bool:
        """Whether decoded images lie beside the results; an evaluation of shards has none there."""
        return "shards" not in self.summary["data"]

    def metrics(self) -> list[str]:
        """Return the keys of the metrics that some point has, in the usual order."""
        return _in_order(key for point in self.points for key in point.values)

    def reconstruction(self, row: Row) -> Path:
        """Return where the decoded image of a row lies."""
        return self.folder / "reconstructions" / row.label / f"{row.image}.png"


def all_metrics(runs: Sequence[Results]) -> list[str]:
    """Return the metrics that some of the runs have, in the usual order."""
    return _in_order(key for run in runs for key in run.metrics())


def read_runs(folders: Sequence[str | Path]) -> list[Results]:
    """Return the runs of folders; those of one name are told apart by their folders' names.

    Raises:
        ResultsError: when a folder is none of a finished run.
    """
    runs = [read_results(folder) for folder in folders]
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    told_apart: list[Results] = []
    for i, run in enumerate(runs):
        name = run.name
        if names.count(name) > 1:
            name = f"{name} ({run.folder.resolve().name})"
            if any(other.name == name for other in told_apart):
                name = f"{run.name} ({i + 1})"
        told_apart.append(replace(run, name=name))
    return told_apart


def read_results(folder: str | Path) -> Results:
    """Return the run of a folder.

    Raises:
        ResultsError: when it is none of a finished run.
    """
    folder = Path(folder)
    path = folder / SUMMARY
    summary = _read_json(path)
    found = summary.get("format")
    if found != FORMAT:
        raise ResultsError(f"{path}: format is {found!r}, this version of glc reads {FORMAT}")
    codec = _get(path, summary, "codec", dict)
    data = _get(path, summary, "data", dict)
    _get(path, summary, "unavailable", dict)
    _get(path, summary, "images", int)
    for i, failure in enumerate(_get(path, summary, "failed", list)):
        if not isinstance(failure, dict) or {"image", "reason"} - failure.keys():
            raise ResultsError(f"{path}: failed[{i}] needs the keys image and reason")
    _get(path, data, "name", str, "data.")
    points = [_point(path, i, point) for i, point in enumerate(_get(path, summary, "points", list))]
    if not points:
        raise ResultsError(f"{path}: points is empty: no image was coded")
    labels = [point.label for point in points]
    for label in labels:
        if labels.count(label) > 1:
            raise ResultsError(f"{path}: two points have the label {label!r}")
    return Results(
        folder=folder,
        name=_get(path, codec, "name", str, "codec."),
        kind=str(codec.get("kind", "")),
        summary=summary,
        points=sorted(points, key=lambda point: point.bpp),
        rows=_rows(folder / PER_IMAGE, set(labels)),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ResultsError(
            f"{path} does not exist: give the folder of a finished evaluation (its out=)"
        ) from None
    except NotADirectoryError:
        raise ResultsError(f"{path.parent} is a file: give the folder of an evaluation") from None
    except (ValueError, OSError) as error:
        raise ResultsError(f"{path} cannot be read ({error}): run the evaluation again") from error
    if not isinstance(content, dict):
        raise ResultsError(f"{path} is not a JSON object: run the evaluation again")
    return content


def _get(path: Path, holder: Mapping[str, Any], key: str, kind: type, prefix: str = "") -> Any:
    if key not in holder:
        raise ResultsError(f"{path}: the key {prefix}{key} is missing")
    value = holder[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ResultsError(f"{path}: {prefix}{key} must be a {kind.__name__}, not {value!r}")
    return value


def _point(path: Path, i: int, point: Any) -> Point:
    where = f"points[{i}]."
    if not isinstance(point, dict):
        raise ResultsError(f"{path}: points[{i}] must be an object")
    values = {}
    for key, value in point.items():
        if key in _NOT_A_VALUE or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ResultsError(f"{path}: {where}{key} must be a number, not {value!r}")
        if not math.isnan(value):
            values[key] = float(value)
    if "bpp" not in values:
        raise ResultsError(f"{path}: the key {where}bpp is missing")
    bpp = values.pop("bpp")
    if not (0 < bpp < math.inf):
        raise ResultsError(f"{path}: {where}bpp must be positive, not {bpp}")
    return Point(
        label=_label(path, where, _get(path, point, "label", str, where)),
        setting=point.get("setting") or {},
        images=_get(path, point, "images", int, where),
        bpp=bpp,
        values=values,
    )


def _label(path: Path, where: str, label: str) -> str:
    # Labels and images' names become parts of paths.
    if not label or label in (".", "..") or set("/\\\0") & set(label):
        raise ResultsError(f"{path}: {where}label {label!r} is no name of a folder")
    return label


def _rows(path: Path, labels: set[str]) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {"image", "label", "bytes", "bpp"} - set(reader.fieldnames or ())
            if missing:
                raise ResultsError(f"{path}: the column {sorted(missing)[0]} is missing")
            rows = [_row(path, line, found) for line, found in enumerate(reader, start=2)]
    except FileNotFoundError:
        raise ResultsError(f"{path} does not exist: run the evaluation again") from None
    except (OSError, csv.Error, UnicodeError) as error:
        raise ResultsError(f"{path} cannot be read ({error}): run the evaluation again") from error
    strange = {row.label for row in rows} - labels
    if strange:
        raise ResultsError(f"{path}: no point of {SUMMARY} has the label {sorted(strange)[0]!r}")
    return rows


def _row(path: Path, line: int, found: Mapping[str, str | None]) -> Row:
    def number(key: str, text: str | None) -> float:
        try:
            return float(text or "")
        except ValueError:
            raise ResultsError(f"{path}, line {line}: {key} is no number: {text!r}") from None

    image = found["image"] or ""
    if not image or image.startswith("/") or "\\" in image or ".." in image.split("/"):
        raise ResultsError(f"{path}, line {line}: {image!r} is no name of an image")
    texts = {key: text for key, text in found.items() if key and key not in _NO_METRIC and text}
    values = {key: number(key, text) for key, text in texts.items()}
    values = {key: value for key, value in values.items() if not math.isnan(value)}
    return Row(
        image=image,
        label=found["label"] or "",
        width=int(number("width", found.get("width") or "0")),
        height=int(number("height", found.get("height") or "0")),
        bytes=int(number("bytes", found["bytes"])),
        bpp=values.pop("bpp") if "bpp" in values else number("bpp", found["bpp"]),
        values=values,
    )
