"""Folders as evaluation runs leave them, with made-up figures: what the tests of reports share."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Curve = Sequence[Mapping[str, float]]

IMAGES = ("harbour", "market", "snow")
CURVE: Curve = (
    {"bpp": 0.02, "psnr": 22.0, "ms_ssim": 0.70, "lpips": 0.30},
    {"bpp": 0.03, "psnr": 23.0, "ms_ssim": 0.75, "lpips": 0.25},
    {"bpp": 0.05, "psnr": 24.0, "ms_ssim": 0.80, "lpips": 0.20},
    {"bpp": 0.08, "psnr": 25.0, "ms_ssim": 0.85, "lpips": 0.16},
)
SIZE = (48, 32)


def at_rates(factor: float, curve: Curve = CURVE) -> list[dict[str, float]]:
    """Return a curve with the same quality at other rates."""
    return [{**point, "bpp": factor * point["bpp"]} for point in curve]


def write_run(
    folder: Path,
    name: str = "glc",
    curve: Curve = CURVE,
    data: str = "kodak",
    images: Sequence[str] = IMAGES,
    colour: tuple[int, int, int] = (200, 40, 40),
    **changes: Any,
) -> Path:
    """Write a run; the i-th image is 0.01 worse by LPIPS than the one before, at each setting.

    Decoded images have one colour with the setting's number added to red and the image's to green.
    """
    labels = [f"q{i}" for i in range(len(curve))]
    points, rows = [], []
    for k, (label, point) in enumerate(zip(labels, curve, strict=True)):
        seconds = {"encode_seconds": 0.5, "decode_seconds": 0.25}
        setting = {"setting": {"quality": k}, "label": label, "images": len(images)}
        points.append({**setting, **point, **seconds})
        for i, image in enumerate(images):
            values = {key: value for key, value in point.items() if key in ("psnr", "ms_ssim", "lpips")}
            if "lpips" in values:
                values["lpips"] += 0.01 * (i - 1)
            about = {"image": image, "width": SIZE[0], "height": SIZE[1], "label": label, "bytes": 100}
            rows.append({**about, "bpp": point["bpp"], **values, **seconds})
            path = folder / "reconstructions" / label / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE, (colour[0] + 8 * k, colour[1] + 8 * i, colour[2])).save(path)
    summary = {
        "format": 1,
        "codec": {"name": name, "kind": "glc", "fingerprint": "00ff", "versions": {"glc": "0.1"}},
        "data": {"name": data, "count": len(images), "source": "made up"},
        "protocol": {"lpips": "alex"},
        "seed": 0,
        "versions": {"torch": "2"},
        "images": len(images),
        "failed": [],
        "unavailable": {},
        "points": points,
        **changes,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    with (folder / "per_image.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["image"], row["label"])))
    return folder


def write_originals(folder: Path, images: Sequence[str] = IMAGES, size: tuple[int, int] = SIZE) -> Path:
    """Write blue images of the names."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        Image.new("RGB", size, (10, 20, 230)).save(folder / f"{image}.png")
    return folder
