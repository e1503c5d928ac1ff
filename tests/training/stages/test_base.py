"""Losses, metrics, optimizers, groups and schedulers that a configuration adds to the stages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from glc.metrics.quality import QualityMetrics
from glc.training.stages.base import Stage
from tests.short_runs import checkpoint, figures, run, settings

HERE = __name__


class Edge(nn.Module):
    """A loss: mean absolute error of horizontal differences."""

    def forward(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """Return the term `edge` `[B]`."""
        return {"edge": (x - x_hat).diff(dim=-1).abs().mean((1, 2, 3))}


class Widest(Metric):
    """A metric over a set: the largest error since the last reset, and the number of images."""

    full_state_update = False
    error: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("error", torch.zeros(()), dist_reduce_fx="max")
        self.add_state("seen", torch.zeros(()), dist_reduce_fx="sum")
        self.network = nn.Conv2d(3, 3, 1)

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add a batch."""
        self.error = torch.maximum(self.error, (x - x_hat).abs().max())
        self.seen += len(x)

    def compute(self) -> Tensor:
        """Return the number of images plus the largest error / 1000."""
        return self.seen + self.error / 1000


def short(images: Path, folder: Path, stage: str, **changes: Any) -> dict[str, Any]:
    """A run of two steps from scratch."""
    return {**settings(images, folder, "short", stage, 2), "init_from": "none", **changes}


EDGE = {"+stage.losses.edge._target_": f"{HERE}.Edge"}


@pytest.mark.parametrize("stage", ["vqvae", "transform", "joint"])
def test_added_loss_is_logged_and_weighted(images: Path, tmp_path: Path, stage: str) -> None:
    logged, weighted = (
        run(short(images, tmp_path / str(w), stage, **EDGE, **{"+stage.distortion_weights.edge": w}))
        for w in (0, 3.0)
    )
    plain, first, other = (
        next(row for row in figures(folder) if "train/loss" in row)
        for folder in (run(short(images, tmp_path / "plain", stage)), logged, weighted)
    )
    # Weight 0 only logs; weight 3 adds 3 x edge, times lambda in stages with lambda.
    speed = "train/images_per_second"
    assert {**first, speed: 0} == {**plain, speed: 0, "train/edge": first["train/edge"]}
    assert first["train/edge"] == other["train/edge"] > 0
    if stage == "vqvae":
        assert other["train/loss"] - first["train/loss"] == pytest.approx(3 * first["train/edge"], rel=1e-4)
    assert other["train/loss"] > first["train/loss"]
    suffix = "" if stage == "vqvae" else "/3"
    assert all(any(f"val/edge{suffix}" in row for row in figures(f)) for f in (logged, weighted))
    assert other["train/grad_norm"] != first["train/grad_norm"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (EDGE, r"^stage\.distortion_weights\.edge: this loss term has no weight"),
        (
            {"+stage.distortion_weights.egde": 1},
            r"^stage\.distortion_weights\.egde: no such loss term; the terms are l1$",
        ),
        ({"stage.optimizer._target_": "torch.optim.LBFGS"}, r"^stage\.optimizer: LBFGS is not supported"),
        (
            {"stage.parameter_groups": "[{match: x}]"},
            r"^stage\.parameter_groups\[0\]\.match=x: no parameter matches",
        ),
        (
            {"+metrics.metrics.l1._target_": f"{HERE}.Widest"},
            r"^metrics\.metrics\.l1: a loss term has the same name",
        ),
    ],
)
def test_invalid_settings_raise_a_one_line_message(
    images: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run(short(images, tmp_path, "vqvae", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("stage", "rates"), [("vqvae", [""]), ("transform", ["/0", "/1", "/2", "/3"])])
def test_set_metric_is_logged_per_rate_point_and_reset(
    images: Path, tmp_path: Path, stage: str, rates: list[str]
) -> None:
    metric = {"+metrics.metrics.widest._target_": f"{HERE}.Widest", "data.epoch_batches": 1}
    folder = run(short(images, tmp_path, stage, **metric))
    rows = [row for row in figures(folder) if "val/loss" in row]
    assert len(rows) == 2
    for row in rows:
        values = [row[f"val/widest{rate}"] for rate in rates]
        assert all(2 < value <= 2.002 for value in values)  # two images each time
    # The metric's network is not part of checkpoints, optimizers or EMA.
    assert not [key for key in checkpoint(folder)["state_dict"] if "widest" in key or "qualit" in key]


def test_metric_copies_share_networks_but_not_state() -> None:
    stage = Stage(None, quality=QualityMetrics({"widest": Widest()}))  # type: ignore[arg-type]
    x = torch.zeros(2, 3, 8, 8)
    stage.log_quality(x, x, "/0")
    stage.log_quality(x, x + 1, "/1")
    assert sorted(stage.qualities) == ["val/0", "val/1"]
    first, second = (stage.qualities[key] for key in sorted(stage.qualities))
    assert first.compute()["widest"] == pytest.approx(2, abs=1e-4)
    assert second.compute()["widest"] == pytest.approx(2.001, abs=1e-4)
    networks = [q._set_metrics["widest"].module.network for q in (first, second, stage.quality)]
    assert networks[0] is networks[1] is networks[2]


def test_optimizers_groups_and_schedulers_from_yaml(images: Path, tmp_path: Path) -> None:
    changes = {
        "stage.optimizer._target_": "torch.optim.SGD",
        "stage.optimizer.lr": 0.01,
        "stage.discriminator_optimizer": "{_target_: torch.optim.Adam, _partial_: true, lr: 0.002}",
        "stage.parameter_groups": '[{match: "*.decoder.*", lr_factor: 0.5}]',
        "stage.schedule._target_": "torch.optim.lr_scheduler.ExponentialLR",
        "+stage.schedule._partial_": "true",
        "+stage.schedule.gamma": 0.5,
        "stage.discriminator_start": 0,
    }
    folder = run(short(images, tmp_path, "vqvae", **changes))
    rates = [row for row in figures(folder) if "lr-Adam" in row]
    assert [row["lr-Adam"] for row in rates] == pytest.approx([0.002, 0.001])
    assert [row["lr-SGD/pg1"] for row in rates] == pytest.approx([0.01, 0.005])
    assert [row["lr-SGD/pg2"] for row in rates] == pytest.approx([0.005, 0.0025])
    saved = checkpoint(folder)  # weights_only=True
    assert [len(state["param_groups"]) for state in saved["optimizer_states"]] == [2, 1]
    resumed = run({**short(images, tmp_path, "vqvae", **changes), "resume": "last", "trainer.max_steps": 3})
    again = [row for row in figures(resumed, version=1) if "lr-Adam" in row]
    assert [row["lr-Adam"] for row in again] == pytest.approx([0.0005])
