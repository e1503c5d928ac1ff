"""A resumed run ends with the same state as an uninterrupted one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glc.training.stages.base import Stage
from tests.short_runs import STAGES, checkpoint, figures, run, settings

STEPS, SAVED = 7, 5


class PowerCut(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: sums have a fixed order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options(images: Path, runs: Path, name: str, stage: str) -> dict[str, Any]:
    """Two epochs of four batches; dead codes restart every three steps, also across the interruption."""
    return {
        **settings(images, runs, name, stage, STEPS),
        "data.epoch_batches": 4,
        "model.projected_codebooks": "false",
        "stage.schedule.warmup": 2,
        "stage.optimizer.lr": 1e-3,
        "callbacks.codebooks.restart_every": 3,
        "callbacks.ema.decay": 0.8,
        "callbacks.last.every_n_steps": SAVED,
        **({} if stage == "transform" else {"stage.discriminator_start": 3}),
    }


@pytest.fixture(scope="module")
def complete(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The stages, each trained without interruption."""
    runs = tmp_path_factory.mktemp("resume")
    return {stage: run(options(images, runs, "complete", stage)) for stage in STAGES}


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return the paths at which two nested values are not bitwise equal."""
    if isinstance(a, Tensor):
        same = torch.equal(a, b) or (a.isnan().all() and b.isnan().all())
        return [] if same else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [found for key in a for found in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [path]
        pairs = enumerate(zip(a, b, strict=True))
        return [found for i, (one, other) in pairs for found in differences(one, other, f"{path}/{i}")]
    return [] if a == b else [path]


SPEED = "train/images_per_second"


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_run_equals_an_uninterrupted_one(
    complete: dict[str, Path], images: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    runs = complete[stage].parents[1]
    chosen = options(images, runs, f"cut-{stage}", stage)
    if stage != "vqvae":
        previous = complete[STAGES[STAGES.index(stage) - 1]]
        chosen["init_from"] = previous / "checkpoints" / "last.ckpt"
    if stage == "joint":
        chosen["stage.discriminator_from"] = complete["vqvae"] / "checkpoints" / "last.ckpt"

    with monkeypatch.context() as patch:
        start_batch = Stage.on_train_batch_start

        def fail_at_last(self: Stage, batch: Any, batch_idx: int) -> None:
            if self.global_step == SAVED:
                raise PowerCut
            start_batch(self, batch, batch_idx)

        patch.setattr(Stage, "on_train_batch_start", fail_at_last)
        with pytest.raises(PowerCut):
            run(chosen)
    folder = runs / f"cut-{stage}" / stage
    saved = checkpoint(folder)
    assert saved["global_step"] == SAVED
    assert saved["callbacks"]["CodebookCare"]["counts"].keys() == {
        "codebook" if stage == "vqvae" else "hyper_codebook"
    }

    torch.rand(17)  # the state of the process's random generator must not matter
    run({**chosen, "resume": "last"})
    resumed, expected = checkpoint(folder), checkpoint(complete[stage])
    assert resumed["global_step"] == STEPS
    for part in (
        "state_dict",
        "current_model_state",
        "averaging_state",
        "optimizer_states",
        "lr_schedulers",
        "loops",
    ):
        assert not differences(resumed[part], expected[part], part)
    for callback in ("CodebookCare", "MovingAverage"):
        assert not differences(resumed["callbacks"][callback], expected["callbacks"][callback], callback)
    first, second = figures(folder, 0), figures(folder, 1)
    assert [row["step"] for row in first if "train/loss" in row] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in second if "train/loss" in row] == [5, 6]
    # The throughput clock starts with the run, also within an epoch.
    speeds = [float(row[SPEED]) for row in first + second if row.get(SPEED)]
    assert min(speeds) > max(speeds) / 100


@pytest.mark.parametrize("stage", ["vqvae"])
def test_run_resumed_after_every_step_equals_an_uninterrupted_one(
    complete: dict[str, Path], images: Path, stage: str
) -> None:
    """Resume within epochs, at their ends, and after a time limit."""
    runs = complete[stage].parents[1]
    chosen = {**options(images, runs, "pieces", stage), "resume": "auto", "max_minutes": 0}
    for _ in range(STEPS):
        folder = run(chosen)
    resumed, expected = checkpoint(folder), checkpoint(complete[stage])
    assert resumed["global_step"] == STEPS
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert not differences(resumed[part], expected[part], part)
    assert not differences(resumed["callbacks"]["CodebookCare"], expected["callbacks"]["CodebookCare"])
    logged = [row for i in range(STEPS) for row in figures(folder, i) if "train/loss" in row]
    assert [row["step"] for row in logged] == list(range(STEPS))
    wanted = [row["train/loss"] for row in figures(complete[stage]) if "train/loss" in row]
    assert [row["train/loss"] for row in logged] == wanted


def test_time_limit_stops_after_complete_steps(complete: dict[str, Path], images: Path) -> None:
    """A checkpoint holds no gradients; an epoch of five batches has steps of two, two and one."""
    runs = complete["vqvae"].parents[1]

    def chosen(name: str) -> dict[str, Any]:
        return {
            **options(images, runs, name, "transform"),
            "init_from": complete["vqvae"] / "checkpoints" / "last.ckpt",
            "stage.accumulate": 2,
            "data.epoch_batches": 5,
            "trainer.max_steps": 4,
        }

    expected = checkpoint(run(chosen("steps-complete")))
    for step in range(1, 5):
        folder = run({**chosen("steps"), "resume": "auto", "max_minutes": 0})
        resumed = checkpoint(folder)
        assert resumed["global_step"] == step
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert not differences(resumed[part], expected[part], part)
    assert not differences(resumed["callbacks"]["CodebookCare"], expected["callbacks"]["CodebookCare"])


def test_compared_optimizer_states_are_not_zero(complete: dict[str, Path]) -> None:
    for stage in STAGES:
        saved = checkpoint(complete[stage])
        for optimizer in saved["optimizer_states"]:
            moments = [state["exp_avg"].abs().max() for state in optimizer["state"].values()]
            assert len(moments) > 5
            assert max(moments) > 0


@pytest.mark.parametrize(
    ("changes", "validated"),
    [
        ({"trainer.check_val_every_n_epoch": 2}, [3, 4]),
        ({"trainer.limit_val_batches": 0}, []),
        ({"trainer.limit_val_batches": 0, "trainer.max_epochs": 3}, []),
    ],
    ids=["every second epoch", "never", "never, with a number of epochs"],
)
def test_epochs_without_a_validation_end_where_those_of_an_uninterrupted_run_end(
    images: Path, tmp_path: Path, changes: dict[str, Any], validated: list[int]
) -> None:
    """Epochs of two steps, resumed after every step; a validation at a stop is repeated on resume."""
    chosen = {**settings(images, tmp_path, "whole", "vqvae", 5), "data.epoch_batches": 2, **changes}
    whole = figures(run(chosen))
    for _ in range(5):
        folder = run({**chosen, "name": "pieces", "resume": "auto", "max_minutes": 0})
    pieces = [row for i in range(5) for row in figures(folder, i)]

    def losses(rows: list[dict[str, float]], name: str) -> list[tuple[float, float]]:
        return sorted({(row["step"], row[name]) for row in rows if name in row})

    assert [step for step, _ in losses(whole, "val/loss")] == validated
    for name in ("val/loss", "train/loss"):
        assert losses(pieces, name) == losses(whole, name)
