"""Make a contact sheet of originals and decoded images, from the folders of finished evaluations.

    python scripts/contact_sheet.py --ours results/small --others results/avif results/vvc \
        --originals KODAK -o docs/images/kodak.jpg

One row per image: the original, our codec at two rate points, each other codec at the setting whose file is
nearest in size to our larger one. Titles give bits per pixel and LPIPS.
"""

import argparse
import math
import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from PIL import Image

from glc.data.images import list_images, read_rgb
from glc.errors import ImageError
from glc.evaluation.results import Results, ResultsError, Row, read_runs
from glc.io.atomic import replacing

matplotlib.use("Agg")
SIDE = 3.0
"""Width of an image in inches."""
DPI = 110


def rows_of(run: Results, image: str) -> list[Row]:
    """Return the rows of an image, in ascending rate."""
    return sorted((row for row in run.rows if row.image == image), key=lambda row: row.bpp)


def choose(ours: Results, others: list[Results], image: str, labels: list[str]) -> list[tuple[Results, Row]]:
    """Return the runs and rows to show beside the original of an image.

    Raises:
        ValueError: a run does not have the image or the rate point.
    """
    by_label = {row.label: row for row in rows_of(ours, image)}
    missing = [label for label in labels if label not in by_label]
    if missing:
        raise ValueError(
            f"{ours.folder}: {image} has no rate point {missing[0]}; choose from {', '.join(by_label)}"
        )
    chosen = [(ours, by_label[label]) for label in labels]
    target = max(row.bpp for _, row in chosen)
    for run in others:
        rows = rows_of(run, image)
        if not rows:
            raise ValueError(f"{run.folder}: no image {image}")
        chosen.append((run, min(rows, key=lambda row: abs(math.log(row.bpp / target)))))
    return chosen


def write_sheet(originals: dict[str, Path], chosen: dict[str, list[tuple[Results, Row]]], path: Path) -> None:
    """Write the sheet as a JPEG file."""
    columns = 1 + max(map(len, chosen.values()))
    shapes = {name: read_rgb(originals[name]).size for name in chosen}
    heights = [SIDE * height / width for width, height in shapes.values()]
    figure, axes = pyplot.subplots(
        len(chosen),
        columns,
        figsize=(SIDE * columns, sum(heights) + 0.25 * len(chosen)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for line, (name, items) in zip(axes, chosen.items(), strict=True):
        line[0].imshow(read_rgb(originals[name]))
        line[0].set_title(name, fontsize=8)
        for axis, (run, row) in zip(line[1:], items, strict=True):
            with Image.open(run.reconstruction(row)) as image:
                axis.imshow(image.convert("RGB"))
            lpips = row.values.get("lpips")
            text = f"{run.name} {row.bpp:.4f} bpp" + ("" if lpips is None else f", LPIPS {lpips:.3f}")
            axis.set_title(text, fontsize=8)
        for axis in line:
            axis.set_axis_off()
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=DPI, pil_kwargs={"quality": 88})
    pyplot.close(figure)


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", type=Path, required=True, help="folder of our evaluation")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="folders to compare with")
    parser.add_argument("--originals", type=Path, required=True, help="folder of the original images")
    parser.add_argument("--images", nargs="+", help="image names; default: six, evenly spread")
    parser.add_argument(
        "--points", nargs="+", help="labels of our rate points; default: the lowest and the highest"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help=".jpg")
    arguments = parser.parse_args()
    if arguments.output.suffix not in (".jpg", ".jpeg"):
        parser.error("--output must end in .jpg")
    try:
        ours, *others = read_runs([arguments.ours, *arguments.others])
        originals = {path.stem: path for path in list_images(arguments.originals)}
        names = sorted({row.image for row in ours.rows} & originals.keys())
        if not names:
            raise ValueError(f"{arguments.originals}: contains none of the images of {arguments.ours}")
        images = arguments.images or names[:: max(1, len(names) // 6)][:6]
        unknown = [name for name in images if name not in originals]
        if unknown:
            raise ValueError(f"{arguments.originals}: no image {unknown[0]}")
        points = arguments.points or [ours.points[0].label, ours.points[-1].label]
        chosen = {name: choose(ours, others, name, points) for name in images}
        write_sheet(originals, chosen, arguments.output)
    except (ImageError, OSError, ResultsError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
