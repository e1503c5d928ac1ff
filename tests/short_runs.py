"""Short training runs with the real configuration at small sizes, for the tests of training and export."""

import csv
import functools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from torchvision.models import AlexNet, squeezenet1_1

from glc.launch.train import train

ROOT = Path(__file__).parents[1]
STAGES = ("vqvae", "transform", "joint")

# Tests must not use the network or depend on local state (W&B login, cached LPIPS weights).
QUIET = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "GLC_OFFLINE": "1", "TORCH_HOME": os.devnull}


def write_images(folder: Path, count: int = 6, side: int = 192) -> Path:
    """Write smooth random images, the same in each call."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def settings(images: Path, runs: Path, name: str, stage: str, steps: int = 4) -> dict[str, Any]:
    """Return overrides that make a run of any stage take seconds."""
    return {
        "stage": stage,
        "stage.schedule.warmup": 0,
        "model": "tiny",
        "data": "folder",
        "data.train": str(images),
        "data.val": str(images),
        "data.crop": 64,
        "data.stride": 64,
        "data.val_crop": 64,
        "data.val_limit": 2,
        "data.batch_size": 2,
        "data.epoch_batches": steps,
        "data.num_workers": 0,
        "trainer.max_steps": steps,
        "trainer.accelerator": "cpu",
        "trainer.log_every_n_steps": 1,
        "logger": "csv",
        "perceptual.required": "false",
        "metrics": "none",
        "validate_first": "false",
        "name": name,
        "runs_dir": str(runs),
    }


def arguments(values: dict[str, Any]) -> list[str]:
    """Return overrides as command-line arguments."""
    return [f"{key}={value}" for key, value in values.items()]


def compose(values: dict[str, Any]) -> DictConfig:
    """Compose the real configuration with overrides, as the command line would."""
    chosen = {"dir": f"{values['runs_dir']}/{values['name']}/{values['stage']}", **values}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return hydra_compose("train", arguments(chosen))


def run(values: dict[str, Any]) -> Path:
    """Train in this process; return the run's folder."""
    cfg = compose(values)
    before = {key: os.environ.get(key) for key in QUIET}
    os.environ.update(QUIET)
    try:
        train(cfg)
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})
    return Path(cfg.dir)


def checkpoint(folder: Path) -> dict[str, Any]:
    """Read a run's last checkpoint with `weights_only=True`."""
    return torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)


def live_weights(saved: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the live weights; `state_dict` holds the EMA if there is one."""
    if "current_model_state" not in saved:
        return saved["state_dict"]
    return saved["current_model_state"]


def figures(folder: Path, version: int = 0) -> list[dict[str, float]]:
    """Return the rows of a run's CSV file, without empty cells."""
    with (folder / "csv" / f"version_{version}" / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def finite(row: dict[str, float]) -> bool:
    """Return whether all values of a row are finite."""
    return all(math.isfinite(value) for value in row.values())


def stand_in_weights(folder: Path) -> Path:
    """Write random weights under the file names of LPIPS' backbones; the published ones are not available."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # AlexNet's classifier is large and not needed.
        for name, features in (
            ("squeezenet1_1", squeezenet1_1(weights=None).features),
            ("alexnet", AlexNet(num_classes=1).features),
        ):
            state = {f"features.{key}": value for key, value in features.state_dict().items()}
            torch.save(state, folder / f"{name}.pth")
    return folder


@functools.cache
def three_stages(base: Path) -> dict[str, Path]:
    """Train the three stages with LPIPS, metrics and validation; return the folder of each."""
    images = write_images(base / "three-stages-images")
    weights = stand_in_weights(base / "three-stages-weights")
    more = {
        "data.val_crop": 192,
        "perceptual.net": "squeeze",
        "perceptual.weights_dir": str(weights),
        "metrics": "default",
        "validate_first": "true",
    }
    runs = base / "three-stages"
    return {stage: run({**settings(images, runs, "all", stage), **more}) for stage in STAGES}
