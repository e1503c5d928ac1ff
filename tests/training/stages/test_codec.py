from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from glc.training.stages.codec import CodecStage, lambdas, sample_rates
from glc.training.stages.transform import TransformStage
from tests.short_runs import run, settings

CPU = torch.device("cpu")


def test_lambda_is_one_value_or_one_per_rate_point() -> None:
    assert lambdas(2, 3).tolist() == [2.0, 2.0, 2.0]
    assert lambdas([0.5, 1, 4], 3).tolist() == [0.5, 1.0, 4.0]
    assert lambdas(2, 3).dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], r"stage\.lmbda: 2 values for the model's 3 rate points"),
        ([], r"stage\.lmbda: 0 values"),
        ([1.0, 0.0, 2.0], r"stage\.lmbda: must be positive"),
        (-1.0, r"stage\.lmbda: must be positive"),
        (float("nan"), r"stage\.lmbda: must be positive"),
        (float("inf"), r"stage\.lmbda: must be positive"),
    ],
)
def test_invalid_lambdas_are_refused(values: float | list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lambdas(values, 3)


@pytest.mark.parametrize(("batch", "points"), [(8, 4), (9, 4), (4, 4), (3, 4), (1, 4), (5, 1)])
def test_rate_points_are_equally_frequent_in_a_batch(batch: int, points: int) -> None:
    for _ in range(20):
        counts = torch.bincount(sample_rates(batch, points, CPU), minlength=points)
        assert counts.sum() == batch
        assert counts.max() - counts.min() <= 1
        assert len(counts) == points


def test_small_batches_sample_every_pair_of_rate_points() -> None:
    sampled = torch.stack([sample_rates(2, 4, CPU) for _ in range(400)])
    shares = torch.bincount(sampled.flatten(), minlength=4) / sampled.numel()
    assert (shares - 0.25).abs().max() < 0.06
    assert len({tuple(pair) for pair in sampled.tolist()}) == 12  # all ordered pairs of different points


def share(position: int, accumulated: int, rank: int, world: int, accumulate: int) -> Tensor:
    """Return one device's rate points for two images, batch number `accumulated` of its step."""
    stage = SimpleNamespace(
        seed=3,
        position=position,
        accumulated=accumulated,
        global_rank=rank,
        trainer=SimpleNamespace(world_size=world),
        optimization=SimpleNamespace(accumulate=accumulate),
        model=SimpleNamespace(num_rates=4),
    )
    return CodecStage.sample_rates(stage, torch.zeros(2, 3, 8, 8))  # type: ignore[arg-type]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 3)])
def test_devices_and_accumulated_batches_share_one_sample(world: int, accumulate: int) -> None:
    sampled = torch.cat(
        [share(50 + i, i, rank, world, accumulate) for i in range(accumulate) for rank in range(world)]
    )
    generator = torch.Generator().manual_seed(3 * 1_000_003 + 50)
    assert torch.equal(sampled, sample_rates(2 * world * accumulate, 4, CPU, generator))


def test_accumulated_step_has_all_rate_points(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    sample = TransformStage.sample_rates

    def recorded(self: TransformStage, x: Tensor) -> Tensor:
        seen.append((self.global_step, sample(self, x)))
        return seen[-1][1]

    monkeypatch.setattr(TransformStage, "sample_rates", recorded)
    values = {**settings(images, tmp_path, "shares", "transform", 8), "init_from": "none"}
    run({**values, "stage.accumulate": 2, "data.epoch_batches": 3})  # each epoch's last step has one batch
    steps = [torch.cat([points for at, points in seen if at == step]).tolist() for step in range(8)]
    assert [len(points) for points in steps] == [4, 2] * 4
    assert all(sorted(points) == [0, 1, 2, 3] for points in steps[::2])
    assert all(len(set(points)) == 2 for points in steps[1::2])
    assert len({tuple(points) for points in steps[::2]}) > 1
