"""Self-contained HTML report of evaluation runs; it loads nothing from the network."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from glc.evaluation.plots import rd_figure, save_plots, svg
from glc.evaluation.results import Results, ResultsError, Row, all_metrics, metric
from glc.evaluation.tables import PublishedCurve, bd_rate_table, number, points_table, published_curves
from glc.evaluation.web_page import WEBP_QUALITY, Section, data_script, embed, warning, web_page
from glc.io.atomic import write_text

SCRIPTS = ("slider.js", "evaluation.js")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
SLIDER_SIDE = 1024
"""Longest side of images in the slider, in pixels."""
CASE_SIDE = 512
"""Longest side of images of failure cases, in pixels."""
NEAR_PERCENT = 15
"""Rates of two images that differ by more are marked."""

_SLIDER = """
<div id="slider" class="slider">
<p><label>left <select data-role="left"></select></label>
<label>right <select data-role="right"></select></label>
<label>image <select data-role="image"></select></label></p>
<div data-role="stage"><img data-role="left-image" alt=""><img data-role="right-image" alt="">
<div data-role="line"></div></div>
<p><input type="range" data-role="position" min="0" max="100" step="0.1" value="50" aria-label="divide"></p>
<div class="captions"><span data-role="left-caption"></span><span data-role="right-caption"></span></div>
<p data-role="rates"></p>
<noscript><p class="warning">The slider needs JavaScript.</p></noscript>
</div>
"""


def build_report(
    runs: Sequence[Results],
    originals: Path | None = None,
    images: int = 8,
    with_published: bool = True,
    anchor: str | None = None,
) -> str:
    """Return the report as HTML.

    Args:
        runs: at least one, all on the same set.
        originals: folder of the set's images, to show beside reconstructions; None: not shown.
        images: largest number of images in the slider.
        with_published: add published results on the set.
        anchor: name of the anchor of BD-rates; None: the first run.

    Raises:
        ResultsError: the runs are on different sets, the anchor is not one of them, or an image is missing.
    """
    sections = evaluation_sections(runs, originals, images, with_published, anchor)
    return web_page(f"Evaluation on {runs[0].data_name}", sections, SCRIPTS)


def evaluation_sections(
    runs: Sequence[Results],
    originals: Path | None = None,
    images: int = 8,
    with_published: bool = True,
    anchor: str | None = None,
) -> list[Section]:
    """Return the sections of a report, for a page with `SCRIPTS`; see `build_report`."""
    check_comparable(runs)
    published = published_curves(runs[0].data_name) if with_published else []
    found = Originals(originals)
    shown = [run for run in runs if run.has_images]
    return [
        Section("summary", "Summary", _summary(runs)),
        Section("plots", "Rate and quality", _plots(runs, published)),
        Section("points", "Points", points_table(runs, published).to_html()),
        Section("bd-rate", "BD-rate", bd_rate_table(runs, anchor_index(runs, anchor), published).to_html()),
        Section("compare", "Images at similar rate", _slider(shown, found, images)),
        Section("failures", "Worst images of each codec", _failures(runs, found)),
        Section("settings", "Settings and versions", _settings(runs)),
    ]


def check_comparable(runs: Sequence[Results]) -> None:
    """Check that runs can be compared in one table.

    Raises:
        ResultsError: there are no runs, or they are on different sets.
    """
    if not runs:
        raise ResultsError("no runs: give the folder of at least one evaluation")
    for run in runs[1:]:
        if run.data_name != runs[0].data_name:
            raise ResultsError(
                f"{run.folder}: evaluated on {run.data_name!r}, but {runs[0].folder} on "
                f"{runs[0].data_name!r}; make one report per set"
            )


def anchor_index(runs: Sequence[Results], anchor: str | None) -> int:
    """Return the index of the anchor; None is the first run.

    Raises:
        ResultsError: no run has its name.
    """
    names = [run.name for run in runs]
    if anchor is None:
        return 0
    if anchor not in names:
        raise ResultsError(f"unknown anchor {anchor!r}; choose one of {', '.join(names)}")
    return names.index(anchor)


def _summary(runs: Sequence[Results]) -> str:
    parts = []
    counts = {run.images for run in runs}
    if len(counts) > 1:
        each = ", ".join(f"{run.name}: {run.images}" for run in runs)
        parts.append(warning(f"The runs have different numbers of images ({each})."))
    # Device, threads and set of metrics may differ.
    ignored = ("device", "threads", "measured")
    protocols = {
        json.dumps({key: v for key, v in run.summary.get("protocol", {}).items() if key not in ignored})
        for run in runs
    }
    if len(protocols) > 1:
        parts.append(warning("The runs used different protocols; see the settings below."))
    for run in runs:
        if run.failed:
            failed = len({failure["image"] for failure in run.failed})
            parts.append(warning(f"{run.name}: {failed} of {run.images} images failed."))
    lines = "".join(
        f"<li>{html.escape(run.name)}: {len(run.points)} settings, {run.points[0].bpp:.4f} to "
        f"{run.points[-1].bpp:.4f} bpp from file sizes, {run.images} images</li>\n"
        for run in runs
    )
    return "\n".join([*parts, f"<ul>\n{lines}</ul>\n"])


def _plots(runs: Sequence[Results], published: Sequence[PublishedCurve]) -> str:
    figures = [
        f"<figure>{svg(rd_figure(runs, name, published), name, inline=True)}</figure>"
        for name in all_metrics(runs)
    ]
    if not figures:
        return "<p>No metric was measured.</p>\n"
    joined = "\n".join(figures)
    return (
        f'<div class="plots">\n{joined}\n</div>\n<p class="note">Solid lines were measured here. '
        "Dashed lines with hollow markers are published results.</p>\n"
    )


def _slider(runs: Sequence[Results], originals: Originals, limit: int) -> str:
    choices = at_equal_rate(runs, limit) if runs else []
    codecs = [run.name for run in runs]
    shown: list[dict[str, Any]] = []
    with_original = False
    for choice in choices:
        entries: list[dict[str, Any] | None] = []
        size = (0, 0)
        sample: Row | None = None
        for run, row in zip(runs, choice.rows, strict=True):
            if row is None:
                entries.append(None)
                continue
            image, sample = read_image(run.reconstruction(row)), row
            size = image.size
            entries.append({"data": embed(image, SLIDER_SIDE), "caption": caption(run, row), "bpp": row.bpp})
        original = originals.find(sample) if sample else None
        if original is not None:
            with_original = True
            entries.append({"data": embed(original, SLIDER_SIDE), "caption": "original"})
        else:
            entries.append(None)
        shown.append({"name": choice.image, "width": size[0], "height": size[1], "entries": entries})
    if not shown:
        return f"<p>No image was measured by two runs.</p>\n{data_script('slider-data', {'images': []})}"
    if with_original:
        codecs.append("original")
    data = {"codecs": codecs, "second": min(1, len(codecs) - 1), "near": NEAR_PERCENT, "images": shown}
    return (
        f"{_SLIDER}"
        '<p class="note">For each codec the setting with the closest file size is shown. Images here are '
        f"WebP of quality {WEBP_QUALITY}, at most {SLIDER_SIDE} pixels a side; "
        "the metrics were measured on the decoded images.</p>\n"
        f"{data_script('slider-data', data)}"
    )


def _failures(runs: Sequence[Results], originals: Originals) -> str:
    parts = []
    for run in runs:
        parts.append(f"<h3>{html.escape(run.name)}</h3>")
        if run.failed:
            items = "".join(f"<li>{html.escape(_failure(failure))}</li>\n" for failure in run.failed)
            parts.append(f"<p>Failed, not included in the means:</p>\n<ul>\n{items}</ul>")
        if not run.has_images:
            parts.append("<p>Evaluation of shards: no decoded images to show.</p>")
            continue
        name, rows = worst(run)
        if not rows:
            parts.append("<p>No per-image metric was measured.</p>")
            continue
        parts.append(f"<p>Worst images by {html.escape(metric(name).title)}:</p>")
        cases = []
        for row in rows:
            images = [(embed(read_image(run.reconstruction(row)), CASE_SIDE), "decoded")]
            original = originals.find(row)
            if original is not None:
                images.insert(0, (embed(original, CASE_SIDE), "original"))
            tags = "".join(
                f'<img src="{data}" alt="{html.escape(f"{row.image}, {what}")}">' for data, what in images
            )
            text = html.escape(f"{row.image}: {caption(run, row)}")
            cases.append(f'<figure><div class="pair">{tags}</div><figcaption>{text}</figcaption></figure>')
        parts.append('<div class="cases">\n' + "\n".join(cases) + "\n</div>")
    return "\n".join(parts) + "\n"


def _failure(failure: Mapping[str, str]) -> str:
    at = f" at {failure['label']}" if "label" in failure else ""
    return f"{failure['image']}{at}: {failure['reason']}"


def _settings(runs: Sequence[Results]) -> str:
    parts = []
    for run in runs:
        kept = {key: value for key, value in run.summary.items() if key not in ("points", "failed")}
        kept["settings"] = {point.label: point.setting for point in run.points}
        text = html.escape(json.dumps(kept, indent=2, ensure_ascii=False))
        parts.append(f"<details><summary>{html.escape(run.name)}</summary>\n<pre>{text}</pre></details>")
    return "\n".join(parts) + "\n"


def write_tables(
    runs: Sequence[Results], folder: Path, with_published: bool = True, anchor: str | None = None
) -> list[Path]:
    """Write plots and tables of a report as files and return their paths; arguments as in `build_report`.

    Raises:
        ResultsError: the runs are on different sets, or the anchor is not one of them.
    """
    check_comparable(runs)
    published = published_curves(runs[0].data_name) if with_published else []
    written = save_plots(runs, folder, published)
    for stem, table in (
        ("points", points_table(runs, published)),
        ("bd_rate", bd_rate_table(runs, anchor_index(runs, anchor), published)),
    ):
        for suffix, text in ((".md", table.to_markdown()), (".tex", table.to_latex())):
            path = folder / (stem + suffix)
            write_text(path, text)
            written.append(path)
    return written


@dataclass(frozen=True)
class Choice:
    """An image and the row that is shown for each run."""

    image: str
    rows: Sequence[Row | None]
    """One per run; None if the run has no result for the image."""


def at_equal_rate(runs: Sequence[Results], limit: int) -> list[Choice]:
    """Return images and, for each run, the setting with the closest rate.

    The target is the setting of the first run that has the closest matches in the other runs. Images are
    spaced evenly over the sorted names of images in at least two runs.

    Args:
        runs: runs on the same set.
    """

    def distance(bpp: float, other: Results) -> float:
        return min(abs(math.log(point.bpp / bpp)) for point in other.points)

    target = min(
        runs[0].points, key=lambda point: (sum(distance(point.bpp, run) for run in runs[1:]), point.bpp)
    )
    rows: dict[str, list[list[Row]]] = {}
    for i, run in enumerate(runs):
        for row in run.rows:
            rows.setdefault(row.image, [[] for _ in runs])[i].append(row)
    names = sorted(
        name for name, found in rows.items() if sum(map(bool, found)) >= min(2, len(runs)) and any(found)
    )
    choices = []
    for name in _spread(names, limit):
        first = [row for row in rows[name][0] if row.label == target.label]
        bpp = first[0].bpp if first else target.bpp
        choices.append(
            Choice(
                name,
                [
                    min(found, key=lambda row: (abs(math.log(row.bpp / bpp)), row.bpp)) if found else None
                    for found in rows[name]
                ],
            )
        )
    return choices


def _spread(names: Sequence[str], limit: int) -> list[str]:
    if limit >= len(names):
        return list(names)
    if limit < 2:
        return list(names[:limit])
    return [names[round(i * (len(names) - 1) / (limit - 1))] for i in range(limit)]


def worst(run: Results, count: int = 5) -> tuple[str, list[Row]]:
    """Return a metric and the worst row of each of the worst images, worst first.

    The metric is LPIPS if measured, otherwise the first measured one of LPIPS (AlexNet), DISTS, MS-SSIM and
    PSNR; without any of them there are no rows.
    """
    for name in ("lpips", "lpips_alex", "dists", "ms_ssim", "psnr"):
        rows = [row for row in run.rows if name in row.values]
        if not rows:
            continue
        sign = -1 if metric(name).higher_is_better else 1
        found: dict[str, Row] = {}
        for row in sorted(rows, key=lambda row: (-sign * row.values[name], row.image, row.label)):
            found.setdefault(row.image, row)
        return name, list(found.values())[:count]
    return "", []


def caption(run: Results, row: Row) -> str:
    """Format the measurements of a row in one line."""
    parts = [f"{number(row.bpp, 4)} bpp"]
    for name in run.metrics():
        if name in row.values:
            of = metric(name)
            parts.append(f"{of.title} {number(row.values[name], of.digits)} {of.unit}".rstrip())
    return f"{run.name}, {row.label}: {', '.join(parts)}"


def read_image(path: Path) -> Image.Image:
    """Read an image as RGB.

    Raises:
        ResultsError: it is missing or corrupt.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise ResultsError(
            f"{path}: does not exist; keep a run's reconstructions beside its summary.json"
        ) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ResultsError(f"{path}: not a readable image ({error}); run the evaluation again") from error


class Originals:
    """Finds original images by name, with or without suffix.

    Args:
        folder: folder of the originals; None: no originals.

    Raises:
        ResultsError: the folder does not exist.
    """

    def __init__(self, folder: Path | None) -> None:
        self._paths: dict[str, Path] = {}
        if folder is None:
            return
        if not folder.is_dir():
            raise ResultsError(f"{folder}: not a folder; give the folder of the set's images")
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                name = path.relative_to(folder)
                for key in (name.as_posix(), name.with_suffix("").as_posix()):
                    self._paths.setdefault(key, path)

    def find(self, row: Row) -> Image.Image | None:
        """Return the original of a row; None if none has its name and size."""
        path = self._paths.get(row.image)
        if path is None:
            return None
        image = read_image(path)
        # Another size means that the evaluation cropped or scaled the image before coding.
        return image if row.width in (0, image.width) and row.height in (0, image.height) else None
