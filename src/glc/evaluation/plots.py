"""Rate-distortion plots of measured curves and, in another style, published points."""

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glc.evaluation.results import Results, all_metrics, metric
from glc.evaluation.tables import PUBLISHED, PublishedCurve, curve_of
from glc.io.atomic import write_bytes

# Markers distinguish curves without colour vision.
MARKERS = "osD^vP*Xhd"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b3a9b", "#8c564b", "#333333")
LOG_FROM = 5.0
"""Ratio of largest to smallest rate above which the rate axis is logarithmic."""


def rd_figure(runs: Sequence[Results], name: str, published: Sequence[PublishedCurve] = ()) -> Figure:
    """Plot a metric over the rate: solid lines for runs, dashed with hollow markers for published curves.

    Args:
        runs: measured runs; those without the metric are omitted.
    """
    return rd_panels(runs, [name], published)


def rd_panels(
    runs: Sequence[Results], names: Sequence[str], published: Sequence[PublishedCurve] = ()
) -> Figure:
    """Plot several metrics side by side, in the style of `rd_figure`, with one legend."""
    figure = Figure(figsize=(2.2 + 5.0 * len(names), 4.4), layout="constrained")
    entries: dict[str, Artist] = {}
    for k, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), k + 1)
        _plot_panel(axes, runs, name, published)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(list(entries.values()), list(entries), loc="outside right upper", fontsize=8)
    return figure


def _plot_panel(axes: Axes, runs: Sequence[Results], name: str, published: Sequence[PublishedCurve]) -> None:
    rates: list[float] = []
    for i, run in enumerate(runs):
        curve = _finite(curve_of(run, name))
        if curve:
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axes.plot(*zip(*curve, strict=True), "-", color=colour, marker=marker, ms=6, label=run.name)
            rates += [rate for rate, _ in curve]
    # Enumerate all curves, also those without this metric: a curve has one style in all panels.
    for i, (codec, curve) in enumerate((entry.codec, entry.curve(name)) for entry in published):
        if not curve:
            continue
        axes.plot(
            *zip(*curve, strict=True),
            "--",
            color=COLOURS[::-1][i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markerfacecolor="none",
            ms=6,
            lw=1,
            alpha=0.8,
            label=f"{codec}{PUBLISHED}",
        )
        rates += [rate for rate, _ in curve]
    if rates and max(rates) / min(rates) > LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("rate (bits per pixel)")
    axes.set_ylabel(metric(name).heading)
    axes.grid(alpha=0.3)


def _finite(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(rate, value) for rate, value in curve if math.isfinite(value)]


def save_plots(runs: Sequence[Results], folder: Path, published: Sequence[PublishedCurve] = ()) -> list[Path]:
    """Write `rd_METRIC.png` and `rd_METRIC.svg` for each metric; return the files."""
    written = []
    for name in all_metrics(runs):
        figure = rd_figure(runs, name, published)
        for path, content in (
            (folder / f"rd_{name}.png", png(figure)),
            (folder / f"rd_{name}.svg", svg(figure, name).encode()),
        ):
            write_bytes(path, content)
            written.append(path)
    return written


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure, salt: str, inline: bool = False) -> str:
    """Encode a figure as reproducible SVG, with text as text elements.

    Args:
        salt: seed of element identifiers; figures on one page need different ones.
        inline: omit the XML header, for embedding in HTML.
    """
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        # Omit matplotlib's metadata: it has the date and URLs.
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", text, flags=re.DOTALL) if inline else text
