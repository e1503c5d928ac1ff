"""Compare codecs on a test set and write tables, BD-rates and a plot into a document.

    python scripts/compare_codecs.py --codecs mine.safetensors,jpeg,webp,avif,jpegxl,hevc,av1,vvc \\
        --testset kodak --images KODAK --weights-dir WEIGHTS --out results/kodak \\
        --document docs/results/kodak.md

Evaluates (an interrupted evaluation of the same command resumes), then replaces the document's text between
`<!-- comparison -->` and `<!-- end of comparison -->`. The plot is written to `images/` beside the document.
`--only-write` uses the results in `--out` and evaluates nothing. Published results are included and marked.
Exit code 1: an image failed; 2: nothing could be started. In both cases the document is unchanged.
"""

import argparse
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glc.evaluation.plots import rd_panels, svg
from glc.evaluation.report import anchor_index, check_comparable
from glc.evaluation.results import Results, read_runs
from glc.evaluation.tables import PublishedCurve, bd_rate_table, points_table, published_curves
from glc.io.atomic import write_text

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- comparison -->", "<!-- end of comparison -->"
METRICS = ("lpips", "psnr")
"""Metrics of the left and the right plot."""
NAMES = {"VTM (VVC)": "vvc"}
"""Published codec names and the measured codecs of the same format."""


def check_against_published(
    runs: Sequence[Results], published: Sequence[PublishedCurve], metric: str = "psnr"
) -> list[str]:
    """Return a sentence for each published point within the measured rates of the same codec."""
    found = []
    for entry in published:
        run = next((run for run in runs if run.name == NAMES.get(entry.codec)), None)
        points = (
            [(math.log(p.bpp), p.values[metric]) for p in run.points if metric in p.values] if run else []
        )
        for bpp, value in entry.curve(metric):
            if run and len(points) > 1 and points[0][0] <= math.log(bpp) <= points[-1][0]:
                here = np.interp(math.log(bpp), *zip(*points, strict=True))
                found.append(
                    f"{entry.codec}: published {value:.2f} dB at {bpp:.4f} bpp; {run.name} measured here, "
                    f"interpolated: {here:.2f} dB ({here - value:+.2f} dB)."
                )
    return found


def between(document: str, text: str, name: str) -> str:
    """Return a document with the text between the markers replaced.

    Raises:
        ValueError: a marker is missing, repeated or out of order.
    """
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end) or BEGIN in tail or END in tail:
        raise ValueError(
            f"{name}: markers missing; put {BEGIN} and {END}, once each, where the tables belong"
        )
    return f"{head}{BEGIN}\n\n{text.strip()}\n\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--codecs", required=True, help="names and weights files as for codec=, separated by commas"
    )
    parser.add_argument("--testset", default="kodak", help="test set, as for testset= (%(default)s)")
    parser.add_argument("--images", type=Path, help="folder of the test set")
    parser.add_argument("--weights-dir", type=Path, help="folder with the metrics' weights")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the results, one folder per codec in it"
    )
    parser.add_argument("--document", type=Path, required=True)
    parser.add_argument("--anchor", default="vvc", help="anchor of the BD-rates (%(default)s)")
    parser.add_argument("--only-write", action="store_true", help="evaluate nothing")
    options = parser.parse_args(arguments)
    codecs = options.codecs.split(",")
    document = options.document.read_text("utf-8")
    between(document, "", str(options.document))  # fail before hours of work
    if not options.only_write:
        words = [f"codec=[{','.join(codecs)}]", f"testset={options.testset}", f"out={options.out.resolve()}"]
        if options.images:
            words.append(f"testset.path={options.images.resolve()}")
        if options.weights_dir:
            words.append(f"metrics.weights_dir={options.weights_dir.resolve()}")
        done = subprocess.run([sys.executable, "-m", "src.evaluate", *words], cwd=ROOT, check=False)
        if done.returncode:
            return done.returncode
    runs = read_runs([options.out / Path(codec).stem for codec in codecs])
    check_comparable(runs)
    published = published_curves(runs[0].data_name)
    plot = options.document.parent / "images" / f"rd_{runs[0].data_name}.svg"
    parts = [
        f"![rate and quality on {runs[0].data_name}](images/{plot.name})",
        points_table(runs, published, seconds=False).to_markdown(),
        bd_rate_table(runs, anchor_index(runs, options.anchor), published).to_markdown(),
        *check_against_published(runs, published),
    ]
    text = between(document, "\n\n".join(part.strip() for part in parts), str(options.document))
    write_text(plot, svg(rd_panels(runs, METRICS, published), plot.stem))
    write_text(options.document, text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
