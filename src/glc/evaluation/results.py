"""Read and check the result files of an evaluation."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glc.io.names import decode_names

FORMAT = 1
SUMMARY = "summary.json"
PER_IMAGE = "per_image.csv"
SECONDS = ("encode_seconds", "decode_seconds")
_NOT_A_VALUE = ("setting", "label", "images")
_NO_METRIC = ("image", "label", "width", "height", "bytes")
_OLD_NAMES = {"picture": "image", "pictures": "images"}
"""Keys and columns that glc 0.1 wrote under another name."""


class ResultsError(ValueError):
    """A run's folder cannot be used; the message names the file, the key and the fix."""


@dataclass(frozen=True)
class Metric:
    """Title, direction and format of a metric."""

    name: str
    title: str
    higher_is_better: bool | None
    """None if unknown."""
    digits: int
    """Decimals in tables."""
    unit: str = ""

    @property
    def heading(self) -> str:
        """Title with the unit and an arrow towards better values."""
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
    """Return the metric of a key; `fid_64` is a variant of `fid`."""
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
    def rank(name: str) -> tuple[int, str]:
        base = _base(name)
        return (_METRICS.index(base) if base else len(_METRICS), name)

    return sorted(set(names) - set(SECONDS), key=rank)


@dataclass(frozen=True)
class Point:
    """Means of one setting of a codec over a set."""

    label: str
    setting: Mapping[str, Any]
    images: int
    """Number of images in the means."""
    bpp: float
    values: Mapping[str, float]
    """Metrics and median seconds, by key; missing if not measured."""


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
    """Content of `summary.json`."""
    points: Sequence[Point]
    """By rate, lowest first."""
    rows: Sequence[Row]

    @property
    def data_name(self) -> str:
        """The set's name."""
        return str(self.summary["data"]["name"])

    @property
    def images(self) -> int:
        """Number of images, including failed ones if the set's size is known."""
        return int(self.summary["data"].get("count") or self.summary["images"])

    @property
    def failed(self) -> Sequence[Mapping[str, str]]:
        """Failed images: `image` and `reason` each."""
        return list(self.summary["failed"])

    @property
    def unavailable(self) -> Mapping[str, str]:
        """Metrics that were not measured, with the reason."""
        return dict(self.summary["unavailable"])

    @property
    def incomplete(self) -> Mapping[str, str]:
        """Means without some or all images, by `metric, label`, with the reason."""
        return dict(self.summary.get("incomplete") or {})

    @property
    def has_images(self) -> bool:
        """Whether the folder has decoded images; evaluations of shards do not."""
        return "shards" not in self.summary["data"]

    def metrics(self) -> list[str]:
        """Return the keys of the metrics of all points, in the usual order."""
        return _in_order(key for point in self.points for key in point.values)

    def reconstruction(self, row: Row) -> Path:
        """Return the path of the decoded image of a row."""
        return self.folder / "reconstructions" / row.label / f"{row.image}.png"


def all_metrics(runs: Sequence[Results]) -> list[str]:
    """Return the keys of the metrics of all runs, in the usual order."""
    return _in_order(key for run in runs for key in run.metrics())


def read_runs(folders: Sequence[str | Path]) -> list[Results]:
    """Read several runs; equal names are made unique by the folders' names.

    Raises:
        ResultsError: a folder is not that of a finished run.
    """
    runs = [read_results(folder) for folder in folders]
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    renamed: list[Results] = []
    for i, run in enumerate(runs):
        name = run.name
        if names.count(name) > 1:
            name = f"{name} ({run.folder.resolve().name})"
            if any(other.name == name for other in renamed):
                name = f"{run.name} ({i + 1})"
        renamed.append(replace(run, name=name))
    return renamed


def read_results(folder: str | Path) -> Results:
    """Read the run of a folder.

    Raises:
        ResultsError: it is not the folder of a finished run.
    """
    folder = Path(folder)
    path = folder / SUMMARY
    summary = _read_json(path)
    found = summary.get("format")
    if found != FORMAT:
        raise ResultsError(
            f"{path}: format is {found!r}, expected {FORMAT}; update glc or run the evaluation again"
        )
    codec = _get(path, summary, "codec", dict)
    data = _get(path, summary, "data", dict)
    _get(path, summary, "unavailable", dict)
    _get(path, summary, "images", int)
    for i, failure in enumerate(_get(path, summary, "failed", list)):
        if not isinstance(failure, dict) or {"image", "reason"} - failure.keys():
            raise ResultsError(f"{path}: failed[{i}] must have the keys image and reason")
    _get(path, data, "name", str, "data.")
    points = [_point(path, i, point) for i, point in enumerate(_get(path, summary, "points", list))]
    if not points:
        raise ResultsError(f"{path}: points is empty, no image was coded; run the evaluation again")
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
            f"{path}: does not exist; give the folder of a finished evaluation (its out=)"
        ) from None
    except NotADirectoryError:
        raise ResultsError(f"{path.parent}: is a file; give the folder of an evaluation") from None
    except (ValueError, OSError) as error:
        raise ResultsError(f"{path}: cannot be read ({error}); run the evaluation again") from error
    if not isinstance(content, dict):
        raise ResultsError(f"{path}: not a JSON object; run the evaluation again")
    renamed: dict[str, Any] = _with_new_names(content)
    return renamed


def _with_new_names(value: Any) -> Any:
    """Return the content of a result file with the keys of glc 0.1 renamed, at every depth."""
    if isinstance(value, dict):
        return {_OLD_NAMES.get(key, key): _with_new_names(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_new_names(inner) for inner in value]
    return value


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
    # Labels and image names become parts of paths.
    if not label or label in (".", "..") or set("/\\\0") & set(label):
        raise ResultsError(f"{path}: {where}label {label!r} is not a valid folder name")
    return label


def _rows(path: Path, labels: set[str]) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [_OLD_NAMES.get(name, name) for name in reader.fieldnames or ()]
            missing = {"image", "label", "bytes", "bpp"} - set(reader.fieldnames or ())
            if missing:
                raise ResultsError(f"{path}: the column {sorted(missing)[0]} is missing")
            rows = [_row(path, line, found) for line, found in enumerate(reader, start=2)]
    except FileNotFoundError:
        raise ResultsError(f"{path}: does not exist; run the evaluation again") from None
    except (OSError, csv.Error, UnicodeError) as error:
        raise ResultsError(f"{path}: cannot be read ({error}); run the evaluation again") from error
    unknown = {row.label for row in rows} - labels
    if unknown:
        raise ResultsError(f"{path}: no point of {SUMMARY} has the label {sorted(unknown)[0]!r}")
    return rows


def _row(path: Path, line: int, found: Mapping[str, str | None]) -> Row:
    def number(key: str, text: str | None) -> float:
        try:
            return float(text or "")
        except ValueError:
            raise ResultsError(f"{path}, line {line}: {key} is not a number: {text!r}") from None

    image = decode_names(found["image"] or "")
    if not image or image.startswith("/") or "\\" in image or ".." in image.split("/"):
        raise ResultsError(f"{path}, line {line}: {image!r} is not a valid image name")
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
