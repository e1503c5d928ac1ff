"""Folders as training runs leave them, with made-up values: what the tests of their page share."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Row = Mapping[str, float]

SIDE = 32
GREY = (90, 90, 90)
"""The original of all panels; reconstructions at rate point k are (60 + 40 k, 40, 200)."""


def config(folder: Path, stage: str = "transform", **changes: Any) -> dict[str, Any]:
    """Return a resolved configuration; `stage__lmbda=2` sets stage.lmbda."""
    found: dict[str, Any] = {
        "name": "fake",
        "dir": str(folder),
        "seed": 0,
        "model": {"name": "tiny"},
        "stage": {"name": stage, "lmbda": 1.0, "module": {"lmbda": 1.0}},
        "trainer": {"max_steps": 100},
        "callbacks": {"panel": {"dirpath": f"{folder}/panels"}},
    }
    for key, value in changes.items():
        *above, last = key.split("__")
        place = found
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
    return found


def rows_of(steps: int = 100, every: int = 10, rates: int = 2, level: float = 1.0) -> list[dict[str, float]]:
    """Return rows of training every `every` steps and of two validations, before and after it."""
    rows: list[dict[str, float]] = []
    for step in (0, *range(every - 1, steps, every)):
        loss = level * (1 + math.exp(-step / 30))
        rows.append(
            {"step": step, "train/loss": loss, "train/grad_norm/decoder": 0.1 * loss, "lr-AdamW": 1e-4}
        )
    for step in (0, steps - 1):
        row: dict[str, float] = {"step": step, "val/loss": level, "val/hyper_codebook_usage": 0.5}
        for k in range(rates):
            gain = 0.0 if step == 0 else 2.0
            row |= {f"val/bpp/{k}": 0.01 * (k + 1) * level, f"val/psnr/{k}": 20.0 + k + gain}
            row |= {f"val/lpips_alex/{k}": 0.5 - 0.1 * k, f"val/ms_ssim/{k}": 0.7 + 0.05 * k}
        rows.append(row)
    return sorted(rows, key=lambda row: row["step"])


def write_version(
    folder: Path, rows: Sequence[Row], settings: Mapping[str, Any] | None, version: int = 0
) -> Path:
    """Write what the CSV logger writes at one start of a run; return the path of the CSV file."""
    place = folder / "csv" / f"version_{version}"
    place.mkdir(parents=True, exist_ok=True)
    if settings is not None:
        (place / "hparams.yaml").write_text(yaml.safe_dump(dict(settings)))
    path = place / "metrics.csv"
    if rows:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_panels(folder: Path, steps: Sequence[int] = (0, 100), images: int = 2, rates: int = 2) -> None:
    """Write strips of single colours."""
    about = PngInfo()
    about.add_text("columns", json.dumps(["x", *(f"rate_{k}" for k in range(rates))]))
    (folder / "panels").mkdir(parents=True, exist_ok=True)
    for image in range(images):
        for step in steps:
            strip = np.zeros((SIDE, (rates + 1) * SIDE, 3), np.uint8)
            strip[:, :SIDE] = np.array(GREY) + image
            for k in range(rates):
                strip[:, (k + 1) * SIDE : (k + 2) * SIDE] = (60 + 40 * k, 40 + image, 200 if step else 0)
            path = folder / "panels" / f"{image:02d}-step-{step:06d}.png"
            Image.fromarray(strip).save(path, pnginfo=about)


def write_histogram(folder: Path, step: int = 100, version: int = 0) -> None:
    """Write the usage of a codebook of eight codewords, the four most frequent ones used."""
    line = {
        "step": step,
        "name": "val/hyper_codebook_histogram",
        "counts": [4, 2, 1, 1, 0, 0, 0, 0],
        "edges": list(range(9)),
    }
    with (folder / "csv" / f"version_{version}" / "histograms.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def write_training(folder: Path, level: float = 1.0, stage: str = "transform", **changes: Any) -> Path:
    """Write a complete run: rows, configuration, panels and a histogram; return its folder."""
    write_version(folder, rows_of(level=level), config(folder, stage, **changes))
    write_panels(folder)
    write_histogram(folder)
    return folder


def write_sweep(folder: Path, lambdas: Sequence[float] = (1.0, 2.0, 4.0)) -> Path:
    """Write a sweep over lambda in `folder/transform`; return `folder`."""
    for value in lambdas:
        place = folder / "transform" / f"stage.lmbda-{value:g}"
        write_training(place, level=value, stage__lmbda=value, stage__module__lmbda=value)
    return folder
