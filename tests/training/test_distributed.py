"""Two processes on the CPU: every stage trains, ranks stay in sync, results equal those of one process."""

from pathlib import Path

import pytest
import torch

from tests.programs import start
from tests.short_runs import QUIET, STAGES, checkpoint, figures, finite
from tests.training.one_step import FixedRates, difference, four_images, update
from tests.training.two_ranks import UNEVEN


@pytest.fixture(scope="module")
def folder(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-ranks")
    done = start(["-m", "tests.training.two_ranks", images, folder], environment=QUIET)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("stage", [*STAGES, *UNEVEN])
def test_ranks_get_different_images_and_equal_weights(folder: Path, stage: str) -> None:
    run_folder = folder / "ranks" / stage
    first, second = (torch.load(run_folder / f"rank-{i}.pt", weights_only=True) for i in range(2))
    assert len(first["seen"]) == len(second["seen"]) == 3
    assert not set(first["seen"]) & set(second["seen"])
    assert first["weights"].keys() == second["weights"].keys()
    for key, value in first["weights"].items():
        assert torch.equal(value, second["weights"][key]), key
    saved = checkpoint(run_folder)
    assert saved["global_step"] == 3
    live = saved["current_model_state"]
    assert all(torch.equal(value, live[key]) for key, value in first["weights"].items())


@pytest.mark.parametrize("stage", STAGES)
def test_metrics_are_logged_once(folder: Path, stage: str) -> None:
    rows = figures(folder / "ranks" / stage)
    training = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in training] == [0, 1, 2]
    assert all(finite(row) for row in rows)
    if stage != "transform":
        assert ["train/adversarial" in row for row in training] == [False, True, True]
        assert training[0]["train/grad_norm_discriminator"] == 0
        assert training[1]["train/grad_norm_discriminator"] > 0
    assert len([row for row in rows if "val/loss" in row]) == 1


def test_two_processes_with_two_images_equal_one_with_four(folder: Path, tmp_path: Path) -> None:
    one = update(tmp_path, "transform", batch=4)
    two = torch.load(folder / "update.pt", weights_only=True)
    assert difference(one, two) < 1e-5
    assert sum(bool(value.any()) for value in one.values()) > 20
    # One rank's images alone give another update.
    assert difference(one, update(tmp_path, "transform", batch=2, devices=1, first=2)) > 0.1


def test_gradients_are_reduced_once_per_accumulated_step(folder: Path, tmp_path: Path) -> None:
    one = update(tmp_path, "transform", batch=4)
    accumulated = torch.load(folder / "accumulated.pt", weights_only=True)
    assert difference(one, accumulated) < 1e-5
    once, twice = (len((folder / f"reductions-{kind}").read_text()) for kind in ("2x1", "1x2"))
    assert once == twice > 0


def test_four_images_have_four_rate_points() -> None:
    holder = type("", (), {"model": type("", (), {"num_rates": 4})})
    assert sorted(FixedRates.sample_rates(holder, four_images()).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("stage", ["vqvae", "transform"])
def test_accumulated_batches_equal_one_large_batch(stage: str, tmp_path: Path) -> None:
    whole = update(tmp_path, stage, batch=4)
    assert difference(whole, update(tmp_path, stage, batch=2, accumulate=2)) < 1e-5
    assert difference(whole, update(tmp_path, stage, batch=1, accumulate=4)) < 1e-5


@pytest.mark.parametrize("sized", [True, False])
def test_a_step_with_fewer_passes_has_the_mean_gradient(tmp_path: Path, sized: bool) -> None:
    """The last step of an epoch that `accumulate` does not divide."""
    whole = update(tmp_path, "vqvae", batch=4)
    assert difference(whole, update(tmp_path, "vqvae", batch=2, accumulate=3, sized=sized)) < 1e-5
