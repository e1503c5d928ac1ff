"""Plot logged values of training runs over steps, one panel per run.

python scripts/plot_losses.py runs/NAME/vqvae runs/NAME/transform -o losses.svg [--names train/loss val/loss]
"""

import argparse
import csv
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def read(run: Path, name: str) -> tuple[list[float], list[float]]:
    """Return steps and values of a CSV column, over all CSV files of a resumed run."""
    points: dict[float, float] = {}
    for path in sorted((run / "csv").glob("version_*/metrics.csv"), key=lambda p: p.stat().st_mtime):
        with path.open(newline="") as file:
            points |= {float(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("-o", "--out", type=Path, required=True, help="image to write, .svg or .png")
    parser.add_argument("--names", nargs="+", default=["train/loss", "val/loss"], help="columns of the CSV")
    arguments = parser.parse_args()
    mpl.rcParams["svg.hashsalt"] = "glc"  # the same values give the same file
    figure, panels = plt.subplots(1, len(arguments.runs), figsize=(4 * len(arguments.runs), 3), squeeze=False)
    for run, panel in zip(arguments.runs, panels[0], strict=True):
        for name in arguments.names:
            steps, values = read(run, name)
            if steps:
                panel.plot(steps, values, marker=".", label=name)
        panel.set(title=run.name, xlabel="step", yscale="log")
        panel.legend()
    figure.tight_layout()
    figure.savefig(arguments.out, metadata={"Date": None} if arguments.out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
