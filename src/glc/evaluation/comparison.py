"""Pictures of several runs at nearly equal rate, and those on which a run does worst."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from glc.evaluation.results import Results, ResultsError, Row, metric
from glc.evaluation.tables import number

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
WEBP_QUALITY = 88
"""High enough that what one sees is the codec's doing."""


@dataclass(frozen=True)
class Choice:
    """A picture and the row of each run that is shown of it."""

    picture: str
    rows: Sequence[Row | None]
    """One per run; None where the run has no result for the picture."""


def at_equal_rate(runs: Sequence[Results], limit: int) -> list[Choice]:
    """Return for some pictures the setting of each run whose files come nearest to one rate.

    The rate is that of the setting of the first run to which the other runs have the nearest settings.
    Pictures are spread evenly over the sorted names of those that two runs have at least.

    Args:
        runs: of one set.
        limit: largest number of pictures.
    """

    def distance(bpp: float, other: Results) -> float:
        return min(abs(math.log(point.bpp / bpp)) for point in other.points)

    target = min(
        runs[0].points, key=lambda point: (sum(distance(point.bpp, run) for run in runs[1:]), point.bpp)
    )
    rows: dict[str, list[list[Row]]] = {}
    for i, run in enumerate(runs):
        for row in run.rows:
            rows.setdefault(row.picture, [[] for _ in runs])[i].append(row)
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
    """Return the metric that judged, and the worst row of each of the worst pictures, worst first.

    LPIPS judges where it was measured, another metric of single pictures otherwise; none: no rows.
    """
    for name in ("lpips", "lpips_alex", "dists", "ms_ssim", "psnr"):
        rows = [row for row in run.rows if name in row.values]
        if not rows:
            continue
        sign = -1 if metric(name).higher_is_better else 1
        found: dict[str, Row] = {}
        for row in sorted(rows, key=lambda row: (-sign * row.values[name], row.picture, row.label)):
            found.setdefault(row.picture, row)
        return name, list(found.values())[:count]
    return "", []


def caption(run: Results, row: Row) -> str:
    """Return a row's figures in one line."""
    figures = [f"{number(row.bpp, 4)} bpp"]
    for name in run.metrics():
        if name in row.values:
            of = metric(name)
            figures.append(f"{of.title} {number(row.values[name], of.digits)} {of.unit}".rstrip())
    return f"{run.name}, {row.label}: {', '.join(figures)}"


def read_picture(path: Path) -> Image.Image:
    """Return a picture in RGB.

    Raises:
        ResultsError: when it is missing or broken.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise ResultsError(
            f"{path} does not exist: keep a run's reconstructions beside its summary.json"
        ) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ResultsError(f"{path} is no picture: {error}") from error


def embed(image: Image.Image, side: int) -> str:
    """Return a picture as a WebP `data:` address, made smaller where it is longer than `side` pixels."""
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


class Originals:
    """Finds the originals of pictures by name, with or without their suffix.

    Args:
        folder: where they lie; None: there are none.

    Raises:
        ResultsError: when the folder does not exist.
    """

    def __init__(self, folder: Path | None) -> None:
        self._paths: dict[str, Path] = {}
        if folder is None:
            return
        if not folder.is_dir():
            raise ResultsError(f"{folder} is not a folder: give the one of the set's pictures")
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                name = path.relative_to(folder)
                for key in (name.as_posix(), name.with_suffix("").as_posix()):
                    self._paths.setdefault(key, path)

    def find(self, row: Row) -> Image.Image | None:
        """Return the original of a row; None when there is none of its name and size."""
        path = self._paths.get(row.picture)
        if path is None:
            return None
        image = read_picture(path)
        # One of another size was cropped or scaled for the evaluation, and is not what was coded.
        return image if row.width in (0, image.width) and row.height in (0, image.height) else None
