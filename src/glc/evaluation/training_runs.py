"""Read what training runs left in their folders, also while they train.

A run's folder has `csv/version_N` with `metrics.csv`, `hparams.yaml` (the configuration) and
`histograms.jsonl`, N the number of the start, and `panels/NN-step-SSSSSS.png`. Any of it may be missing or
end in the middle: the run may have just started, have been killed, or be writing.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from glc.evaluation.results import SUMMARY, ResultsError
from glc.io.settings import differing, flat

AT_RATE = re.compile(r"val/(?P<name>.+)/(?P<rate>\d+)")
"""Key of a metric at a rate point."""
STAGES = ("vqvae", "transform", "joint", "polish")
"""The usual order; other stages follow."""
_PANEL = re.compile(r"(\d+)-step-(\d+)\.png")
_NOT_SEARCHED = {"checkpoints", "csv", "mlflow", "panels", "reconstructions", "tensorboard", "wandb"}
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # without the C library it is ten times slower


@dataclass(frozen=True)
class Series:
    """A logged value over the steps."""

    steps: np.ndarray
    """`[N]`, int64, increasing."""
    values: np.ndarray
    """`[N]`, float64; may be non-finite."""


@dataclass(frozen=True)
class Panel:
    """A strip of a validation image and its reconstructions."""

    path: Path
    image: int
    """Index of the image in the validation set."""
    step: int


@dataclass(frozen=True)
class Histogram:
    """How often codewords were used in a validation, the most frequent first, binned."""

    step: int
    counts: Sequence[float]
    """`[BINS]`."""
    edges: Sequence[float]
    """`[BINS + 1]`, ranks of codewords."""


@dataclass(frozen=True)
class TrainingRun:
    """A training run: one stage, or one job of a sweep."""

    folder: Path
    name: str
    """Its folder below the folder that was given, such as `transform/stage.lmbda-2`."""
    settings: Mapping[str, Any]
    """The configuration; empty if it is not in the folder."""
    series: Mapping[str, Series] = field(default_factory=dict)
    """By log name, with `val/NAME`, the mean over the rate points, of each `val/NAME/K`."""
    panels: Sequence[Panel] = ()
    """By image, then by step."""
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    """The last of each codebook, by its name."""
    starts: int = 1
    """How often the run was started or resumed."""
    changed: float | None = None
    """When its metrics were last written, in seconds since 1970."""

    @property
    def stage(self) -> str:
        """Name of the stage; guessed from the folder where the configuration is missing."""
        stage = self.settings.get("stage")
        named = stage.get("name") if isinstance(stage, Mapping) else None
        known = (part for part in reversed(Path(self.folder).resolve().parts) if part in STAGES)
        return str(named) if named else next(known, "")

    @property
    def step(self) -> int | None:
        """The last step with a logged value; None if nothing was logged."""
        return max((int(found.steps[-1]) for found in self.series.values()), default=None)

    def last(self, key: str) -> float | None:
        """Return the last value of a series; None if there is none."""
        found = self.series.get(key)
        return None if found is None else float(found.values[-1])

    def rate_points(self, name: str) -> list[int]:
        """Return the rate points at which a metric was validated, in order."""
        found = (AT_RATE.fullmatch(key) for key in self.series)
        return sorted(int(match["rate"]) for match in found if match and match["name"] == name)


def find_runs(folder: Path) -> list[Path]:
    """Return the folders of the training runs in a folder, which may be that of a run itself."""
    return [path for path in _folders(folder) if _versions(path)]


def find_evaluations(folder: Path) -> list[Path]:
    """Return the folders of the finished evaluations in a folder."""
    return [path for path in _folders(folder) if (path / SUMMARY).is_file()]


def _folders(folder: Path) -> Iterator[Path]:
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NOT_SEARCHED and name[0] != ".")
        yield Path(place)


def _versions(folder: Path) -> list[Path]:
    try:
        found = [path for path in (folder / "csv").iterdir() if re.fullmatch(r"version_\d+", path.name)]
    except OSError:
        return []
    return sorted(found, key=lambda path: int(path.name.removeprefix("version_")))


def read_training_runs(folders: Sequence[Path]) -> list[TrainingRun]:
    """Read all training runs in folders, each once, by stage and name; names are unique.

    Raises:
        ResultsError: a folder does not exist.
    """
    named: dict[Path, TrainingRun] = {}
    for folder in folders:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise ResultsError(f"{folder}: {what}; give the folder of a training run or an evaluation")
        for place in find_runs(folder):
            name = place.relative_to(folder).as_posix()
            if name == ".":
                name = place.resolve().name
            elif len(folders) > 1:
                name = f"{folder.resolve().name}/{name}"
            named.setdefault(place.resolve(), read_training_run(place, name))
    runs = sorted(named.values(), key=lambda run: (_stage_rank(run.stage), natural(run.name)))
    counts: Counter[str] = Counter()
    unique = []
    for run in runs:
        counts[run.name] += 1
        again = counts[run.name]
        unique.append(run if again == 1 else replace(run, name=f"{run.name} ({again})"))
    return unique


def _stage_rank(stage: str) -> tuple[int, str]:
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), stage)


def natural(name: str) -> list[tuple[float, str]]:
    """Return a key that sorts the numbers in names by value."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]


def read_training_run(folder: Path, name: str) -> TrainingRun:
    """Read the run of a folder. What is missing or unreadable is left out."""
    versions = _versions(folder)
    series: dict[str, dict[int, float]] = {}
    histograms: dict[str, Histogram] = {}
    changed: float | None = None
    settings: Mapping[str, Any] = {}
    for version in versions:
        metrics = version / "metrics.csv"
        signature = _signature(metrics)
        if signature is not None:
            changed = max(changed or 0.0, signature[0] / 1e9)
            _continue(series, _read_metrics(metrics, signature))
        histograms |= _read_histograms(version / "histograms.jsonl")
        settings = _read_yaml(version / "hparams.yaml") or settings
    return TrainingRun(
        folder=folder,
        name=name,
        settings=settings or _read_yaml(folder / ".hydra" / "config.yaml"),
        series=_with_means({key: _series(values) for key, values in series.items() if values}),
        panels=_find_panels(folder / "panels"),
        histograms=histograms,
        starts=len(versions),
        changed=changed,
    )


def _signature(path: Path) -> tuple[int, int] | None:
    """Return time and size of a file, by which its content is cached; None if it cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=1024)
def _read_metrics(path: Path, signature: tuple[int, int]) -> Mapping[str, Mapping[int, float]]:
    """Read value by step by key of a CSV file; of equal steps the last one counts."""
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return {}
    # The last line may be half written, and after a crash of the machine hold zeros.
    lines = text[: text.rfind("\n") + 1].replace("\0", "").splitlines()
    rows = csv.reader(lines)
    header = next(rows, [])
    if "step" not in header:
        return {}
    at = header.index("step")
    found: dict[str, dict[int, float]] = {key: {} for key in header if key != "step"}
    columns = [found.get(key) for key in header]
    for row in rows:
        if len(row) != len(header):
            continue
        try:
            step = int(row[at])
            for column, cell in zip(columns, row, strict=True):
                if cell and column is not None:
                    column[step] = float(cell)
        except ValueError:
            continue
    return found


def _continue(series: dict[str, dict[int, float]], later: Mapping[str, Mapping[int, float]]) -> None:
    """Add the values of a later start; values of earlier starts beyond its first step were discarded."""
    first = min((step for values in later.values() for step in values), default=None)
    if first is None:
        return
    for key, values in series.items():
        series[key] = {step: value for step, value in values.items() if step <= first}
    for key, added in later.items():
        series.setdefault(key, {}).update(added)


def _series(values: Mapping[int, float]) -> Series:
    steps = np.fromiter(values.keys(), np.int64, len(values))
    order = np.argsort(steps)
    return Series(steps[order], np.fromiter(values.values(), np.float64, len(values))[order])


def _with_means(series: dict[str, Series]) -> dict[str, Series]:
    """Add the mean over the rate points of each metric, at the steps that all of its rate points have."""
    points: dict[str, list[Series]] = {}
    for key, found in series.items():
        match = AT_RATE.fullmatch(key)
        if match:
            points.setdefault(f"val/{match['name']}", []).append(found)
    means = {}
    for name, each in points.items():
        steps = each[0].steps
        for other in each[1:]:
            steps = np.intersect1d(steps, other.steps)
        if name not in series and len(steps):
            values = [found.values[np.isin(found.steps, steps)] for found in each]
            means[name] = Series(steps, np.mean(values, axis=0))
    return {**series, **means}


def _read_histograms(path: Path) -> dict[str, Histogram]:
    found: dict[str, Histogram] = {}
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            row = json.loads(line)
            name = str(row["name"]).removeprefix("val/").removesuffix("_histogram")
            histogram = Histogram(int(row["step"]), [*map(float, row["counts"])], [*map(float, row["edges"])])
        except (ValueError, KeyError, TypeError):  # half written
            continue
        if len(histogram.edges) == len(histogram.counts) + 1:
            found[name] = histogram
    return found


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        return _parse_yaml(path.read_text("utf-8"))
    except (OSError, UnicodeError):
        return {}


@lru_cache(maxsize=1024)
def _parse_yaml(text: str) -> Mapping[str, Any]:
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError):  # half written
        return {}
    return content if isinstance(content, dict) else {}


def _find_panels(folder: Path) -> list[Panel]:
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    found = [(match, folder / match[0]) for match in map(_PANEL.fullmatch, names) if match]
    panels = [Panel(path, int(match[1]), int(match[2])) for match, path in found]
    return sorted(panels, key=lambda panel: (panel.image, panel.step))


def read_panel(panel: Panel, rate_points: int) -> dict[str, Image.Image]:
    """Return the images of a strip by name, the original first; empty if it cannot be read.

    Args:
        rate_points: of the run, to divide strips of glc 0.1, which do not name their images.
    """
    try:
        with Image.open(panel.path) as strip:
            # The text chunk may follow the pixels.
            image = strip.convert("RGB")
            names = json.loads(strip.info.get("columns", "null"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return {}
    if not isinstance(names, list) or not names:
        names = ["x", *(f"rate_{k}" for k in range(rate_points))] if rate_points else ["x", "x_hat"]
    if image.width % len(names):
        return {}
    width = image.width // len(names)
    return {
        str(name): image.crop((i * width, 0, (i + 1) * width, image.height)) for i, name in enumerate(names)
    }


def differences(runs: Sequence[TrainingRun]) -> dict[str, list[Any]]:
    """Return the settings that differ between runs of one stage: by key a value per run, None if missing."""
    keys: dict[str, None] = {}
    for stage in dict.fromkeys(run.stage for run in runs):
        own = [run.settings for run in runs if run.stage == stage and run.settings]
        keys |= dict.fromkeys(differing(own))
    each = [flat(run.settings) for run in runs]
    return {key: [settings.get(key) for settings in each] for key in keys}
