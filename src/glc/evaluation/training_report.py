"""The sections of the page of training runs: curves, rate-distortion, images, codebooks, settings."""

import hashlib
import html
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from glc.evaluation.results import Results, ResultsError, all_metrics, metric, read_results
from glc.evaluation.tables import NOTHING, number
from glc.evaluation.training_charts import (
    GROUPS,
    TABLED,
    Thinned,
    curve_charts,
    histogram_charts,
    rate_charts,
    title,
)
from glc.evaluation.training_runs import AT_RATE, Panel, Series, TrainingRun, differences, read_panel
from glc.evaluation.web_page import Section, data_script, embed, warning

SCRIPTS = ("slider.js", "charts.js", "training.js")
IMAGE_BYTES = 2_000_000
"""Bytes of the page for images; each run's last ones first."""
PANEL_SIDE = 512
"""Longest side of images, in pixels."""
_SIDE = """<div id="live" hidden><span></span> <button type="button">pause</button></div>
<details class="controls" id="controls" open><summary>Curves</summary>
<label class="line">smoothing <input type="range" id="smooth" min="0" max="0.99" step="0.01" value="0">
<output id="smooth-value">0</output></label>
<label><input type="checkbox" id="x-log"> logarithmic x axis</label>
<label><input type="checkbox" id="y-log"> logarithmic y axis</label>
<label><input type="checkbox" id="clip"> ignore outliers</label>
{rate}<label class="line">find <input type="search" id="find" placeholder="lpips, grad_norm ..."></label>
</details>
<details class="runs" id="runs-shown" open><summary>Runs ({count})</summary>
<p><button type="button" id="all-runs">all</button> <button type="button" id="no-runs">none</button>
<input type="search" id="find-run" placeholder="find a run" aria-label="find a run"></p>
<div id="run-list" role="group" aria-label="runs that are shown"></div>
</details>
"""
_SLIDER = """<div id="panel-slider" class="slider">
<div class="menus">{left}{right}
<fieldset><legend>image</legend>
<select data-role="image" id="panel-image" aria-label="image"></select></fieldset>
</div>
<div class="viewer"><div class="divided">
<div data-role="stage"><img data-role="left-image" alt=""><img data-role="right-image" alt="">
<div data-role="line"></div></div>
<p><input type="range" data-role="position" id="panel-position" min="0" max="100" step="0.1" value="50"
aria-label="divide"></p>
<div class="captions"><span data-role="left-caption"></span><span data-role="right-caption"></span></div>
</div><div data-role="thumbs" role="group" aria-label="images of the run at the right"></div></div>
</div>
"""
_JOIN = """<p><label>a line joins <select id="join"><option value="run">the rate points of a run</option>
<option value="point">the runs at a rate point</option></select></label></p>
"""


def training_side(runs: Sequence[TrainingRun]) -> str:
    """Return the column of controls and runs as HTML; the list of runs is the legend of all charts."""
    points = max((k for run in runs for k in run.rate_points("bpp")), default=None)
    rate = ""
    if points is not None:
        options = "".join(f'<option value="{k}">{k}</option>' for k in range(points + 1))
        rate = (
            '<label class="line">rate point <select id="rate"><option value="mean">mean</option>'
            f'{options}<option value="all">all</option></select></label>\n'
        )
    return _SIDE.format(rate=rate, count=len(runs))


def training_sections(
    runs: Sequence[TrainingRun], evaluations: Sequence[Path] = (), output: Path = Path("report.html")
) -> list[Section]:
    """Return the sections about training runs, for a page with `SCRIPTS` and `training_side`.

    Args:
        runs: at least one.
        evaluations: folders of evaluations to list.
        output: file of the page, which links are relative to.
    """
    thinned = Thinned(runs)
    charts = curve_charts(runs)
    rates = rate_charts(runs)
    histograms = histogram_charts(runs)
    images, panels, omitted = _panels(runs)
    data = {
        "runs": [
            {"name": run.name, "short": _short_name(run, runs), "stage": run.stage, "done": _done(run)}
            for run in runs
        ],
        "series": {key: thinned.series(key) for chart in charts for key in chart["variants"].values()},
        "steps": thinned.steps,
        "charts": charts,
        "rates": rates,
        "histograms": histograms,
        "images": images,
        "panels": panels,
    }
    sections = [Section("runs", "Runs", _table(runs, output) + data_script("training-data", data))]
    if rates:
        note = '<p class="note">The last validation of each run; bpp is the entropy model\'s estimate.</p>\n'
        content = f'{_JOIN}<div class="charts" id="rate-charts"></div>\n{note}'
        sections.append(Section("rate-distortion", "Rate and distortion", content))
    if panels:
        sections.append(Section("images", "Reconstructions", _slider(omitted)))
    for key, name in GROUPS.items():
        if any(chart["group"] == key for chart in charts):
            content = f'<div class="charts" data-charts="{key}"></div>\n'
            sections.append(Section(f"curves-{key}", name, content))
        if key == "codebooks" and histograms:
            text = "Share of the uses in the last validation, the most frequent codeword first."
            note = f'<p class="note">{text}</p>\n'
            content = f'<div class="charts" id="histogram-charts"></div>\n{note}'
            sections.append(Section("usage", "Codebook usage", content))
    if evaluations:
        sections.append(Section("evaluations", "Evaluations", _evaluations(evaluations, output)))
    return sections


# Images ---------------------------------------------------------------------------------------------


def _panels(runs: Sequence[TrainingRun]) -> tuple[list[str], list[dict[str, Any]], int]:
    """Return the images, the panels that show them, and the number of panels that were left out."""
    images: list[str] = []
    indices: dict[str, int] = {}
    panels: list[dict[str, Any]] = []
    size = 0
    for i, panel in _by_importance(runs):
        run = runs[i]
        signature = _changed(panel.path)
        found = _embedded(panel, max(run.rate_points("bpp"), default=-1) + 1, signature)
        if not found:
            continue
        new = {digest: data for _, digest, data, _ in found if digest not in indices}
        added = sum(map(len, new.values()))
        if panels and size + added > IMAGE_BYTES:
            break
        size += added
        for digest, data in new.items():
            indices[digest] = len(images)
            images.append(data)
        width, height = found[0][3]
        columns = [
            {**_column(run, panel.step, name, first=not k), "image": indices[digest]}
            for k, (name, digest, _, _) in enumerate(found)
        ]
        about = {"run": i, "image": panel.image, "step": panel.step, "width": width, "height": height}
        panels.append({**about, "columns": columns})
    panels.sort(key=lambda panel: (panel["run"], panel["image"], panel["step"]))
    return images, panels, sum(len(run.panels) for run in runs) - len(panels)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _by_importance(runs: Sequence[TrainingRun]) -> Iterator[tuple[int, Panel]]:
    """Yield run and panel: each run's last ones, image by image, then the first, the middle one, ..."""
    each = [
        {image: [p for p in run.panels if p.image == image] for image in {p.image for p in run.panels}}
        for run in runs
    ]
    images = sorted({image for found in each for image in found})
    for image in images:
        yield from ((i, found[image][-1]) for i, found in enumerate(each) if image in found)
    for image in images:
        earlier = [(i, _spread(found[image][:-1])) for i, found in enumerate(each) if image in found]
        for rank in range(max((len(panels) for _, panels in earlier), default=0)):
            yield from ((i, panels[rank]) for i, panels in earlier if rank < len(panels))


def _spread(panels: Sequence[Panel]) -> list[Panel]:
    """Return panels in an order of which any beginning covers the whole range: ends, middle, quarters, ..."""
    order = [0, len(panels) - 1] if panels else []
    gaps = [(0, len(panels) - 1)]
    while gaps:
        low, high = gaps.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [panels[i] for i in dict.fromkeys(order)]


@lru_cache(maxsize=512)
def _embedded(panel: Panel, rate_points: int, changed: float) -> list[tuple[str, str, str, tuple[int, int]]]:
    """Return name, digest, address and size of each image of a strip, cached by the time of its file."""
    return [
        (name, hashlib.sha256(image.tobytes()).hexdigest(), embed(image, PANEL_SIDE), image.size)
        for name, image in read_panel(panel, rate_points).items()
    ]


def _column(run: TrainingRun, step: int, name: str, first: bool) -> dict[str, Any]:
    """Return the texts of an image of a strip."""
    if first:
        return {
            "name": name,
            "title": "original",
            "caption": "original",
            "brief": "original",
            "original": True,
        }
    rate = name.removeprefix("rate_") if name.startswith("rate_") else None
    title = name.replace("_", " ") if rate is None else f"rate point {rate}"
    suffix = "" if rate is None else f"/{rate}"
    measured = []
    for key in ("bpp", "psnr", "ms_ssim", "lpips_alex"):
        value = _at(run.series.get(f"val/{key}{suffix}"), step)
        if value is not None:
            of = metric(key)
            measured.append(f"{number(value, of.digits)} {of.unit or of.title}")
    text = f" (validation means: {', '.join(measured)})" if measured else ""
    brief = ", ".join([title, *measured[:1]])
    return {"name": name, "title": title, "caption": f"{title}{text}", "brief": brief, "original": False}


def _at(series: Series | None, step: int) -> float | None:
    """Return the value at a step; validation is logged with the number of the step before."""
    if series is None:
        return None
    i = int(np.searchsorted(series.steps, step, side="right")) - 1
    value = float(series.values[i]) if i >= 0 and series.steps[i] >= step - 1 else math.nan
    return value if math.isfinite(value) else None


def _slider(omitted: int) -> str:
    sides = {
        side: f"<fieldset><legend>{side}</legend>"
        + "".join(
            f'<select data-role="{side}-{part}" id="panel-{side}-{part}" aria-label="{side}: {what}">'
            "</select>"
            for part, what in (("run", "run"), ("step", "step"), ("column", "original or reconstruction"))
        )
        + "</fieldset>"
        for side in ("left", "right")
    }
    note = f" {omitted} more panels are in the runs' folders." if omitted else ""
    return (
        f'{_SLIDER.format(**sides)}<p class="note">Images are WebP, at most {PANEL_SIDE} pixels a side.{note}'
        "</p>\n"
    )


# Tables ---------------------------------------------------------------------------------------------


def _max_steps(run: TrainingRun) -> int:
    trainer = run.settings.get("trainer")
    steps = trainer.get("max_steps") if isinstance(trainer, Mapping) else None
    return steps if isinstance(steps, int) and not isinstance(steps, bool) else -1


def _progress(run: TrainingRun) -> str:
    """Return the steps made and, where it is known, their number in all."""
    if run.step is None:
        return "started"
    # Steps are numbered from 0; accumulated passes count as steps in the log.
    done, of = run.step + 1, _max_steps(run)
    return f"{done} / {of}" if of >= done else f"{done}"


def _done(run: TrainingRun) -> str:
    """Return the share of the steps that are made, or their number."""
    if run.step is None or _max_steps(run) <= run.step:
        return _progress(run)
    return f"{100 * (run.step + 1) / _max_steps(run):.0f} %"


def _short_name(run: TrainingRun, runs: Sequence[TrainingRun]) -> str:
    """Return the name without the folders that all runs of its stage share."""
    names = [other.name for other in runs if other.stage == run.stage]
    shared = os.path.commonpath(names) if len(names) > 1 else ""
    return run.name.removeprefix(f"{shared}/") if shared else run.name


def _table(runs: Sequence[TrainingRun], output: Path) -> str:
    differing = differences(runs)
    measured = [key for key in TABLED if any(key in run.series for run in runs)]
    starts = max(run.starts for run in runs) > 1
    heads = ["run", *(["stage"] if len({run.stage for run in runs}) > 1 else []), "steps"]
    heads += [*(["starts"] if starts else []), *differing, *map(title, measured), "last written"]
    rows = []
    for i, run in enumerate(runs):
        link = html.escape(_link(run.folder, output))
        cells = [f'<th scope="row"><i data-run="{i}"></i><a href="{link}">{html.escape(run.name)}</a></th>']
        if "stage" in heads:
            cells.append(_cell(run.stage))
        cells.append(_cell(_progress(run), -1 if run.step is None else run.step))
        if starts:
            cells.append(_cell(str(run.starts), run.starts))
        for values in differing.values():
            value = values[i]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            cells.append(_cell("" if value is None else str(value), value if is_number else None))
        for key in measured:
            last = run.last(key)
            digits = metric(key.removeprefix("val/")).digits if key != "train/images_per_second" else 1
            cells.append(
                _cell(NOTHING if last is None else number(last, digits), math.nan if last is None else last)
            )
        when = "" if run.changed is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.changed))
        cells.append(_cell(when))
        rows.append(f'<tr data-run="{i}">{"".join(cells)}</tr>')
    head = "".join(
        f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in heads
    )
    notes = "\n".join(map(warning, _warnings(runs)))
    written = time.strftime("%Y-%m-%d %H:%M:%S")
    return (
        f'{notes}<div class="table"><table id="run-table">\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + '\n</tbody></table></div>\n<p class="note">The last value of each metric, '
        "a mean over the rate points. "
        f"Of the settings only those that differ within a stage are shown. Page written {written}.</p>\n"
        "<noscript>" + warning("The curves and images need JavaScript.") + "</noscript>\n"
    )


def _cell(text: str, value: float | None = None) -> str:
    if value is None:
        return f"<td>{html.escape(text)}</td>"
    sortable = f"{value:.10g}" if math.isfinite(value) else ""
    return f'<td class="number" data-value="{sortable}">{html.escape(text)}</td>'


def _warnings(runs: Sequence[TrainingRun]) -> list[str]:
    found = []
    for run in runs:
        if not run.settings:
            found.append(f"{run.name}: no configuration was found, so its settings are not compared.")
        if run.step is None:
            found.append(f"{run.name}: started, nothing is logged yet.")
            continue
        bad = {
            key: s.steps[~np.isfinite(s.values)]
            for key, s in run.series.items()
            if not AT_RATE.fullmatch(key)
        }
        bad = {key: steps for key, steps in bad.items() if len(steps)}
        if bad:
            first = min(bad, key=lambda key: (bad[key][0], key))
            others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            found.append(f"{run.name}: {first}{others} not finite, first at step {bad[first][0]}.")
        if not any(key.startswith("val/") for key in run.series):
            found.append(f"{run.name}: no validation yet.")
    if len(found) > 8:
        found[7:] = [f"and {len(found) - 7} more notes on other runs."]
    return found


def _evaluations(folders: Sequence[Path], output: Path) -> str:
    """Return a table with links to evaluations; to see their sections, give their folders as RUN."""
    rows = []
    for folder in folders:
        try:
            results = read_results(folder)
        except ResultsError as error:
            about = [html.escape(f"cannot be read: {error}")]
        else:
            about = [html.escape(text) for text in _about(results)]
        target = next((path for path in (folder / "report.html",) if path.is_file()), folder)
        link = f'<a href="{html.escape(_link(target, output))}">{html.escape(str(folder))}</a>'
        rows.append(f"<tr><td>{link}</td>{''.join(f'<td>{text}</td>' for text in about)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("folder", "codec", "set", "settings", "bpp", "metrics"))
    body = "\n".join(rows)
    return (
        f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
        '<p class="note">Give such a folder as another RUN to see its results on this page.</p>\n'
    )


def _about(results: Results) -> list[str]:
    points = results.points
    ranges = []
    for name in all_metrics([results]):
        values = [point.values[name] for point in points if name in point.values]
        digits = metric(name).digits
        ranges.append(f"{metric(name).title} {_span(min(values), max(values), digits)}")
    rate = _span(points[0].bpp, points[-1].bpp, 4)
    return [results.name, results.data_name, str(len(points)), rate, ", ".join(ranges)]


def _span(low: float, high: float, digits: int) -> str:
    first, last = number(low, digits), number(high, digits)
    return first if first == last else f"{first} to {last}"


def _link(path: Path, output: Path) -> str:
    """Return the address of a file or folder, relative to the page's folder."""
    return quote(os.fsencode(os.path.relpath(path.resolve(), output.resolve().parent)))
