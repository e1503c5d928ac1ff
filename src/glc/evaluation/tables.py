"""Tables of rate points and BD-rates in Markdown, LaTeX and HTML, measured and published.

BD-rate (Bjontegaard delta rate): mean rate difference of two codecs at equal quality, for any metric.
`published_rd.json` has the published results and their sources.
"""

import functools
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from typing import Any

from bjontegaard import bd_rate as bjontegaard_bd_rate

from glc.evaluation.results import Results, all_metrics, metric

READ = {
    "file": "a table of numbers by the authors",
    "plot": "the authors' figure, digitised (about 1 %)",
    "eye": "the authors' figure, by eye (about 3 %)",
}
# Published name of a metric to keys in runs; the first one found is used.
_SAME = {"fid": ("fid", "fid_256"), "kid": ("kid", "kid_256"), "lpips": ("lpips", "lpips_alex")}


@dataclass(frozen=True)
class PublishedCurve:
    """Published results of a codec on a set."""

    codec: str
    source: str
    read: str
    """How the numbers were obtained, a key of `READ`."""
    points: Sequence[Mapping[str, float]]
    """`bpp` and metrics, by ascending rate."""

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """Return (rate, value) of the points that have a metric, by its key in runs."""
        name = next((published for published, keys in _SAME.items() if metric in keys), metric)
        return [(point["bpp"], point[name]) for point in self.points if name in point]


@functools.cache
def _content() -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads(
        files("glc.evaluation").joinpath("published_rd.json").read_text("utf-8")
    )
    return content


def published_curves(data_name: str) -> list[PublishedCurve]:
    """Return published results on a set: `kodak`, `clic2020` or `div2k`; an empty list for others."""
    return [
        PublishedCurve(
            codec=entry["codec"],
            source=entry["source"],
            read=entry["read"],
            points=sorted(entry["points"], key=lambda point: point["bpp"]),
        )
        for entry in _content()["sets"].get(data_name, [])
    ]


def published_latencies() -> list[Mapping[str, Any]]:
    """Return published times: `codec, device, size, encode, decode` (ms), `params_m` (millions), `source`."""
    return list(_content()["latency"])


NOTHING = "–"
PUBLISHED = " (published)"
"""Suffix of the names of codecs with published results."""
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
}


@dataclass(frozen=True)
class ResultTable:
    """A table with one header line; cells are plain text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    """Number of leading text columns; the others are numbers."""
    notes: Sequence[str] = ()
    """Notes below the table, a sentence each."""

    def to_markdown(self) -> str:
        """Return the table as Markdown, its notes below."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(_plain(cell).replace("|", r"\|") for cell in cells) + " |"

        rule = ["---" if i < self.text_columns else "---:" for i in range(len(self.header))]
        lines = [line(self.header), "| " + " | ".join(rule) + " |", *map(line, self.rows)]
        return "\n".join([*lines, *(f"\n{_plain(note)}" for note in self.notes)]) + "\n"

    def to_latex(self) -> str:
        """Return the table as a LaTeX `tabular` for booktabs, its notes as paragraphs below."""

        def line(cells: Sequence[str]) -> str:
            return "  " + " & ".join(map(_latex, cells)) + r" \\"

        numbers = len(self.header) - self.text_columns
        return "\n".join(
            [
                rf"\begin{{tabular}}{{{'l' * self.text_columns}{'r' * numbers}}}",
                r"  \toprule",
                line(self.header),
                r"  \midrule",
                *map(line, self.rows),
                r"  \bottomrule",
                r"\end{tabular}",
                *(rf"\par\smallskip {_latex(note)}" for note in self.notes),
                "",
            ]
        )

    def to_html(self) -> str:
        """Return the table as HTML, all text escaped."""

        def line(cells: Sequence[str], tag: str) -> str:
            kinds = ["" if i < self.text_columns else ' class="number"' for i in range(len(cells))]
            return "".join(
                f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
            )

        rows = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in self.rows)
        notes = "".join(f'<p class="note">{html.escape(note)}</p>\n' for note in self.notes)
        head = line(self.header, "th")
        return (
            f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody>\n</table></div>\n{notes}"
        )


def _plain(text: str) -> str:
    return " ".join(text.split())


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in _plain(text))


def number(value: float | None, digits: int) -> str:
    """Format a number for a cell."""
    if value is None:
        return NOTHING
    return "inf" if math.isinf(value) else f"{value:.{digits}f}"


def points_table(
    runs: Sequence[Results], published: Sequence[PublishedCurve] = (), seconds: bool = True
) -> ResultTable:
    """Return the means of each run at each setting, then published points, marked as such.

    Args:
        seconds: include times, which are valid only if nothing else ran on the machine.
    """
    times = ("encode_seconds", "decode_seconds") if seconds else ()
    names = all_metrics(runs)
    chosen = [metric(name) for name in names]
    header = ["codec", "setting", "images", "bpp ↓", *(m.heading for m in chosen)]
    header += [f"{name.removesuffix('_seconds')} (s)" for name in times]
    rows, notes = [], []
    for run in runs:
        for point in run.points:
            rows.append(
                [
                    run.name,
                    point.label,
                    str(point.images),
                    number(point.bpp, 4),
                    *(number(point.values.get(m.name), m.digits) for m in chosen),
                    *(number(point.values.get(name), 3) for name in times),
                ]
            )
            if point.images < run.images:
                notes.append(f"{run.name}, {point.label}: over {point.images} of {run.images} images only.")
        notes += [f"{run.name}, {mean}: {why}." for mean, why in run.incomplete.items()]
    notes += _not_measured(runs)
    notes += [f"{run.name}: {run.protocol}." for run in runs if run.protocol]
    used = set()
    for entry in published:
        curves = {name: dict(entry.curve(name)) for name in names}
        for rate in [point["bpp"] for point in entry.points]:
            if not any(rate in curve for curve in curves.values()):
                continue
            values = [number(curves[m.name].get(rate), m.digits) for m in chosen]
            rows.append(
                [
                    f"{entry.codec}{PUBLISHED}",
                    NOTHING,
                    NOTHING,
                    number(rate, 4),
                    *values,
                    *[NOTHING] * len(times),
                ]
            )
            used.add((entry.codec, entry.source, entry.read))
    notes += [f"{codec}{PUBLISHED}: {source}; {READ[read]}." for codec, source, read in sorted(used)]
    return ResultTable(header, rows, text_columns=2, notes=notes)


def _not_measured(runs: Sequence[Results]) -> list[str]:
    """Return why metrics are missing, one line per reason; the summaries have the details and the fix."""
    missing: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for name, why in run.unavailable.items():
            missing.setdefault((name, why.split(". ")[0].rstrip(".")), []).append(run.name)
    return [
        f"{name} was not measured ({', '.join(names) if len(names) < len(runs) else 'by any run'}): {why}."
        for (name, why), names in missing.items()
    ]


def bd_rate_table(
    runs: Sequence[Results], anchor: int = 0, published: Sequence[PublishedCurve] = ()
) -> ResultTable:
    """Return the BD-rates of runs and published curves against one run, in percent, for each metric.

    Negative: fewer bits than the anchor at equal quality.
    """
    names = all_metrics(runs)
    base = runs[anchor]
    tested = [
        (run.name, {name: curve_of(run, name) for name in names}) for i, run in enumerate(runs) if i != anchor
    ]
    tested += [
        (f"{entry.codec}{PUBLISHED}", {name: entry.curve(name) for name in names}) for entry in published
    ]
    rows = []
    notes: dict[str, dict[str, list[str]]] = {}
    for codec, curves in tested:
        cells = []
        for name in names:
            found = bd_rate(curve_of(base, name), curves[name], name)
            cells.append(NOTHING if found.percent is None else f"{found.percent:+.1f}".replace("-", "−"))
            # No note for metrics that a paper does not report.
            if found.note and curves[name]:
                notes.setdefault(found.note, {}).setdefault(codec, []).append(metric(name).title)
        # Published curves without any BD-rate appear in the notes only.
        if set(cells) != {NOTHING} or not codec.endswith(PUBLISHED):
            rows.append([codec, *cells])
    first = f"BD-rate in percent against {base.name}, {METHOD}; negative: fewer bits."
    return ResultTable(
        ["codec", *(metric(name).title for name in names)],
        rows,
        notes=[first, *(f"{_capital(note)}: {_listed(about)}." for note, about in notes.items())],
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listed(about: dict[str, list[str]]) -> str:
    return "; ".join(f"{codec} ({', '.join(titles)})" for codec, titles in about.items())


def curve_of(run: Results, name: str) -> list[tuple[float, float]]:
    """Return (rate, value) of the points of a run that have a metric."""
    return [(point.bpp, point.values[name]) for point in run.points if name in point.values]


METHOD = "pchip"
"""Interpolation of log rate over quality: piecewise cubic, monotone, as used in standardisation."""
FEWEST_POINTS = 3
"""Fewest points of a curve; two do not determine its shape."""
USUAL_POINTS = 4
WELL_SHARED = 0.5
"""Overlap of the quality ranges, as a share of their union, below which a BD-rate gets a note."""

Curve = Sequence[tuple[float, float]]
"""Pairs of rate in bpp and a metric's value."""


@dataclass(frozen=True)
class BDRate:
    """A BD-rate, or the reason why it is undefined."""

    percent: float | None
    """Mean rate difference at equal quality; negative: the tested codec needs fewer bits."""
    note: str = ""
    """Reason for a missing value, or a caveat."""


def bd_rate(anchor: Curve, test: Curve, name: str) -> BDRate:
    """Return the BD-rate of a codec against an anchor for a metric.

    The log rate is integrated over quality. A metric where lower is better is negated first, so that for all
    metrics quality increases with the rate and a negative result means fewer bits.

    Args:
        anchor: points of the anchor, at least three.
        test: points of the tested codec, at least three.
    """
    higher = metric(name).higher_is_better
    if higher is None:
        return BDRate(None, f"unknown whether higher {name} is better")
    sign = 1 if higher else -1
    curves = []
    for role, curve in (("anchor", anchor), ("codec", test)):
        # Lossless coding gives infinite PSNR.
        points = sorted(
            (rate, sign * value) for rate, value in curve if math.isfinite(rate) and math.isfinite(value)
        )
        if any(rate <= 0 for rate, _ in points):
            raise ValueError("rates must be positive")
        if len(points) < FEWEST_POINTS:
            return BDRate(None, f"the {role} has fewer than {FEWEST_POINTS} points")
        for (rate, quality), (next_rate, next_quality) in pairwise(points):
            if next_rate == rate or next_quality <= quality:
                return BDRate(
                    None, f"the {role}'s quality does not increase from {rate:.4f} to {next_rate:.4f} bpp"
                )
        curves.append(points)
    low = max(curve[0][1] for curve in curves)
    high = min(curve[-1][1] for curve in curves)
    if low >= high:
        return BDRate(None, "the quality ranges do not overlap")
    union = max(curve[-1][1] for curve in curves) - min(curve[0][1] for curve in curves)
    notes = []
    if min(len(curve) for curve in curves) < USUAL_POINTS:
        notes.append(f"from {min(len(curve) for curve in curves)} points")
    if (high - low) / union < WELL_SHARED:
        notes.append(f"over {100 * (high - low) / union:.0f} % of the quality range")
    (anchor_rates, anchor_quality), (test_rates, test_quality) = (
        zip(*curve, strict=True) for curve in curves
    )
    percent = bjontegaard_bd_rate(
        list(anchor_rates),
        list(anchor_quality),
        list(test_rates),
        list(test_quality),
        method=METHOD,
        require_matching_points=False,
        min_overlap=0,
    )
    return BDRate(float(percent), ", ".join(notes))
