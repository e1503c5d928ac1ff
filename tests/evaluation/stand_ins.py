"""Images, metrics and codecs for evaluations of seconds; at module level, so that workers find them."""

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from glc.evaluation.codecs.base import ImageCodec
from glc.evaluation.codecs.still import StillCodec
from glc.evaluation.evaluate import Evaluation
from glc.evaluation.testsets import open_testset
from glc.losses.perceptual import WeightsUnavailable
from glc.metrics.quality import MSSSIM, PSNR, QualityMetrics
from tests.codec.fixed_model import fixed_image

SIZES = ((40, 56), (48, 48), (200, 180), (33, 71))


class MeanDifference(Metric):
    """A metric of a whole set: the mean absolute difference over all values."""

    full_state_update = False
    total: Tensor
    number: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("number", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        self.total += (x - x_hat).abs().double().sum()
        self.number += x.numel()

    def compute(self) -> Tensor:
        return (self.total / self.number).float()


def without_weights() -> torch.nn.Module:
    raise WeightsUnavailable("no weights here; fix: put them there")


def make_metrics(left_out: Sequence[str]) -> QualityMetrics:
    entries = {"psnr": PSNR, "ms_ssim": MSSSIM, "difference": MeanDifference, "lpips": without_weights}
    return QualityMetrics({name: entry for name, entry in entries.items() if name not in left_out})


def make_jpeg(qualities: Sequence[float], device: str) -> ImageCodec:
    return StillCodec("JPEG", ".jpg", {"optimize": True}, 1, 95, qualities=qualities)


def write_images(folder: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (height, width) in enumerate(sizes):
        Image.fromarray(fixed_image(height, width, i)).save(folder / f"p{i}.png")
    return folder


def evaluation(out: Path, path: Path | str, **changes: Any) -> Evaluation:
    """Return an evaluation of a folder of images or of shards."""
    values: dict[str, Any] = {
        "out": out,
        "images": open_testset(str(path)),
        "make_codec": partial(make_jpeg, (10, 50)),
        "make_metrics": make_metrics,
        "metrics": ["psnr", "ms_ssim", "difference", "lpips"],
        "device": "cpu",
        "progress": False,
    }
    return Evaluation(**(values | changes))


def results(out: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return what a run's result files hold, but for how long things took."""
    summary = json.loads((out / "summary.json").read_text())
    with (out / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for entry in (*summary["points"], *rows):
        for key in ("encode_seconds", "decode_seconds"):
            assert float(entry.pop(key, 0)) >= 0
    return summary, rows
