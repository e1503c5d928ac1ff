"""Train the tiny codec in three stages on photographs from installed packages, then measure it.

    python scripts/demo.py [--dir runs/demo]

Writes the compressed files, `summary.json` and `side_by_side.png` into the run's folder. `make demo` runs it
after `make setup`. The metrics depend on the processor: float sums differ in their last bits, and training
amplifies the difference (PSNR 17.2 to 18.3 dB on one processor, 18.7 to 19.2 dB on another).
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import save_image

from glc.codec.codec import Codec, load
from glc.codec.weights.export import export
from glc.data.images import read_rgb, to_tensor
from glc.data.pack import pack
from glc.data.sources import sample_paths
from glc.io.atomic import write_text
from glc.losses.perceptual import LPIPS
from glc.metrics import MSSSIM, PSNR, QualityMetrics

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("vqvae", "transform", "joint")
NOTICE = (
    "This is a demonstration: a model of less than a million parameters, trained for minutes on six\n"
    "photographs. It shows that every part works, not the quality of the method."
)


def train(folder: Path) -> None:
    """Train the three stages in order, each in its own process."""
    for stage in STAGES:
        print(f"\n== stage={stage}", flush=True)
        command = [
            *(sys.executable, "-m", "src.train", "experiment=demo", f"stage={stage}"),
            *(f"runs_dir={folder.parent}", f"name={folder.name}", "overwrite=true"),
        ]
        environment = {"WANDB_MODE": "offline", **os.environ}
        subprocess.run(command, cwd=ROOT, check=True, env=environment)


def logged(folder: Path, stage: str, name: str) -> list[float]:
    """Return the values of a column of a stage's CSV file, in the order of the steps."""
    files = sorted((folder / stage / "csv").glob("version_*/metrics.csv"), key=lambda p: p.stat().st_mtime)
    with files[-1].open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def measure(
    codec: Codec, images: list[Tensor], folder: Path
) -> tuple[list[dict[str, float]], list[list[Tensor]], dict[str, str]]:
    """Compress images `[3, H, W]` in [-1, 1] to files and decompress them, at every rate point.

    Returns:
        Means over the images per rate point; the original and the reconstructions per image; the metrics
        that are not available, with the reason of each.
    """
    points = []
    strips: list[list[Tensor]] = [[image] for image in images]
    quality = QualityMetrics({"psnr": PSNR(), "ms_ssim": MSSSIM(), "lpips": lambda: LPIPS("alex")})
    rates = codec.model.num_rates
    for rate in range(rates):
        quality.reset()
        for i, (image, strip) in enumerate(zip(images, strips, strict=True)):
            file = folder / f"image{i}-rate{rate}.glc"
            file.write_bytes(codec.compress((image + 1) / 2, quality=100 * rate / (rates - 1)))
            x_hat = to_tensor(codec.decompress(file.read_bytes()))
            quality.update(image[None], x_hat[None], torch.tensor([8.0 * file.stat().st_size]))
            strip.append(x_hat)
        points.append({"rate": float(rate), **{name: float(v) for name, v in quality.compute().items()}})
    return points, strips, quality.unavailable


def save_side_by_side(strips: list[list[Tensor]], path: Path) -> None:
    """Save one row per image: the original, then the reconstructions from the lowest rate up."""
    height = min(strip[0].shape[1] for strip in strips)
    width = min(strip[0].shape[2] for strip in strips)
    rows = [torch.cat([p[:, :height, :width] for p in strip], dim=2) for strip in strips]
    save_image((torch.cat(rows, dim=1) + 1) / 2, path)


def shortcomings(summary: dict[str, Any]) -> list[str]:
    """Return the expectations that the demo did not meet; an empty list on success."""
    rates = [point["bpp"] for point in summary["points"]]
    found = [] if rates == sorted(set(rates)) else [f"the rates do not increase with lambda: {rates}"]
    for stage, loss in summary["stages"].items():
        if not loss["last_val_loss"] < loss["first_val_loss"]:
            found.append(f"the validation loss of stage={stage} did not fall: {loss}")
    for name, value in summary["validation"].items():
        if not value["joint"] > value["stage_1_at_initialisation"]:
            found.append(f"{name} did not rise over the untrained model's: {value}")
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=Path("runs/demo"), help="folder of the run")
    folder: Path = parser.parse_args().dir.resolve()
    started = time.monotonic()
    for split in ("train", "test"):
        pack(sample_paths(split), ROOT / "data" / "samples" / split, workers=1)
    train(folder)

    weights = folder / "demo.safetensors"
    export(folder / "joint" / "checkpoints" / "last.ckpt", weights)
    codec = load(weights, "cpu")
    images = [to_tensor(read_rgb(path)) for path in sample_paths("test")]
    with torch.inference_mode():
        points, strips, unavailable = measure(codec, images, folder)
    save_side_by_side(strips, folder / "side_by_side.png")
    losses = {stage: logged(folder, stage, "val/loss") for stage in STAGES}
    last = codec.model.num_rates - 1
    summary: dict[str, Any] = {
        "notice": NOTICE,
        "points": points,
        "unavailable": unavailable,
        "stages": {stage: {"first_val_loss": v[0], "last_val_loss": v[-1]} for stage, v in losses.items()},
        "validation": {
            name: {
                "stage_1_at_initialisation": logged(folder, "vqvae", f"val/{name}")[0],
                "joint": logged(folder, "joint", f"val/{name}/{last}")[-1],
            }
            for name in ("psnr", "ms_ssim")
        },
        "seconds": round(time.monotonic() - started, 1),
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")

    print(f"\nUnseen photographs ({len(images)}), compressed to files at each rate point:\n")
    names = [name for name in ("bpp", "psnr", "ms_ssim", "lpips") if name in points[0]]
    print("rate   " + "".join(f"{name:>10}" for name in names))
    for point in points:
        print(f"{point['rate']:<7.0f}" + "".join(f"{point[name]:>10.4f}" for name in names))
    for name, reason in unavailable.items():
        print(f"\n{name} was omitted: {reason}")
    print(f"\nSide by side: {folder / 'side_by_side.png'}\nSummary: {folder / 'summary.json'}")
    print(f"{summary['seconds']:.0f} seconds.\n\n{NOTICE}")
    problems = shortcomings(summary)
    if problems:
        raise SystemExit("the demo failed: " + "; ".join(problems))


if __name__ == "__main__":
    main()
