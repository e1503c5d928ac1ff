"""The charts of the page of training runs, as data: curves over steps, quality over rate, codebook usage."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glc.evaluation.results import metric
from glc.evaluation.training_runs import AT_RATE, Series, TrainingRun, natural

POINTS = 240_000
"""Values in the page, over all curves of all runs."""
GROUPS = {
    "validation": "Validation",
    "losses": "Training losses",
    "discriminator": "Discriminator",
    "codebooks": "Codebooks",
    "optimisation": "Optimisation",
}
"""Sections of curves."""
TABLED = (
    "val/loss",
    "val/bpp",
    "val/file_bpp",
    "val/psnr",
    "val/ms_ssim",
    "val/lpips_alex",
    "val/lpips",
    "val/codebook_perplexity",
    "val/hyper_codebook_perplexity",
    "train/images_per_second",
)
"""Last values in the table of runs, where there are any."""
_CHARTED = ("psnr", "ms_ssim", "lpips_alex", "lpips", "dists")
"""Qualities plotted over the rate come in this order, then others."""


def thin(values: np.ndarray, limit: int) -> np.ndarray:
    """Return indices of at most about `limit` values that keep the curve's extremes, in order.

    Of each of `limit / 2` equal parts the smallest and the largest finite value are kept, and the first
    non-finite one, so that a gap remains one; the first and the last value are kept as well.

    Args:
        values: `[N]`.
        limit: at least 4.
    """
    size = len(values)
    if size <= limit:
        return np.arange(size)
    kept = {0, size - 1}
    edges = np.linspace(0, size, limit // 2 + 1).round().astype(int)
    finite = np.isfinite(values)
    for start, stop in itertools.pairwise(edges.tolist()):
        inside = np.flatnonzero(finite[start:stop])
        if len(inside):
            part = values[start:stop][inside]
            kept |= {start + int(inside[part.argmin()]), start + int(inside[part.argmax()])}
        if len(inside) < stop - start:
            kept.add(start + int((~finite[start:stop]).argmax()))
    return np.array(sorted(kept))


class Thinned:
    """The curves of runs with a bounded number of values; curves at the same steps share them."""

    def __init__(self, runs: Sequence[TrainingRun]) -> None:
        self.runs = runs
        number_of_curves = sum(len(run.series) for run in runs)
        self.limit = min(1000, max(80, POINTS // max(1, number_of_curves)))
        self.steps: list[list[int]] = []
        self._known: dict[bytes, int] = {}

    def series(self, key: str) -> dict[str, Any]:
        """Return the index of the steps and the values, by run."""
        return {str(i): self._one(run.series[key]) for i, run in enumerate(self.runs) if key in run.series}

    def _one(self, found: Series) -> list[Any]:
        kept = thin(found.values, self.limit)
        steps = found.steps[kept]
        index = self._known.setdefault(steps.tobytes(), len(self.steps))
        if index == len(self.steps):
            self.steps.append(steps.tolist())
        return [index, [_short(value) for value in found.values[kept].tolist()]]


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def curve_charts(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return a chart per metric; its variants are the mean and the rate points."""
    keys = sorted({key for run in runs for key in run.series} - {"epoch"})
    charts: dict[str, dict[str, Any]] = {}
    for key in keys:
        match = AT_RATE.fullmatch(key)
        base = f"val/{match['name']}" if match else key
        chart = charts.setdefault(
            base, {"group": _group(base), "key": base, "title": title(base), "variants": {}}
        )
        chart["variants"][match["rate"] if match else "mean"] = key
    order = {name: i for i, name in enumerate(dict.fromkeys(("val/loss", "train/loss", *TABLED)))}
    return sorted(
        charts.values(), key=lambda chart: (order.get(chart["key"], len(order)), natural(chart["key"]))
    )


def _group(key: str) -> str:
    if "codebook_" in key:
        return "codebooks"
    if any(word in key for word in ("grad_norm", "weight_norm", "images_per_second")):
        return "optimisation"
    if any(word in key for word in ("logits", "discriminator", "adversarial")):
        return "discriminator"
    return {"val": "validation", "train": "losses"}.get(key.split("/")[0], "optimisation")


def title(key: str) -> str:
    """Return the heading of a metric: with unit and direction where they are known, else its key."""
    name = key.removeprefix("val/")
    known = metric(name)
    return known.heading if key.startswith("val/") and known.higher_is_better is not None else key


def rate_charts(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return a chart per quality metric: the last validation of each run at each rate point."""
    names = {match["name"] for run in runs for match in map(AT_RATE.fullmatch, run.series) if match}
    known = [name for name in names if name != "bpp" and metric(name).higher_is_better is not None]
    order = {name: i for i, name in enumerate(_CHARTED)}
    charts = []
    for name in sorted(known, key=lambda name: (order.get(name, len(order)), name)):
        points = []
        for i, run in enumerate(runs):
            values = _lambda(run)
            for k in run.rate_points("bpp"):
                bpp, value = run.last(f"val/bpp/{k}"), run.last(f"val/{name}/{k}")
                if bpp is None or value is None or not (math.isfinite(bpp) and math.isfinite(value)):
                    continue
                step = int(run.series[f"val/{name}/{k}"].steps[-1])
                point = {"run": i, "point": k, "lambda": values.get(k), "step": step}
                points.append({**point, "bpp": _short(bpp), "value": _short(value)})
        if points:
            charts.append({"title": metric(name).heading, "points": points})
    return charts


def _lambda(run: TrainingRun) -> dict[int, float]:
    """Return lambda by rate point, where the settings have it."""
    stage = run.settings.get("stage")
    found = stage.get("lmbda") if isinstance(stage, Mapping) else None
    points = run.rate_points("bpp")
    values = found if isinstance(found, list) else [found] * (points[-1] + 1 if points else 0)
    return {
        k: float(value)
        for k, value in enumerate(values)
        if isinstance(value, int | float) and math.isfinite(value)
    }


def histogram_charts(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return a chart per codebook: the mean share of the uses of a codeword, over its rank."""
    charts = []
    for name in sorted({name for run in runs for name in run.histograms}):
        found: dict[str, list[Any]] = {}
        for i, run in enumerate(runs):
            if name in run.histograms:
                histogram = run.histograms[name]
                counts, edges = np.array(histogram.counts), np.array(histogram.edges)
                shares = counts / max(counts.sum(), 1) / np.maximum(np.diff(edges), 1)
                found[str(i)] = [edges[:-1].tolist(), [*map(_short, shares.tolist())], histogram.step]
        charts.append({"title": name.replace("_", " "), "runs": found})
    return charts
