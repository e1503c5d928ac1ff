import math
from pathlib import Path
from typing import Any

import pytest

from glc.launch import UsageError
from glc.training.schedule import WarmupCosine
from tests.short_runs import checkpoint, figures, run, settings


def test_warmup_hold_and_decay() -> None:
    schedule = WarmupCosine(warmup=4, total=24, floor=0.1, hold=0.5)
    assert [schedule(step) for step in range(4)] == [0.2, 0.4, 0.6, 0.8]
    assert [schedule(step) for step in (4, 10, 13)] == [1, 1, 1]  # held for half of the other 20 steps
    assert schedule(14) == 1
    assert schedule(19) == pytest.approx(0.55)  # half way down to the floor
    assert schedule(16) == pytest.approx(0.1 + 0.9 * (1 + math.cos(0.2 * math.pi)) / 2)
    assert schedule(24) == schedule(1000) == pytest.approx(0.1)


def test_cosine_without_warmup_and_hold() -> None:
    schedule = WarmupCosine(warmup=0, total=10)
    assert [schedule(step) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


def test_full_hold_and_warmup_longer_than_the_run() -> None:
    held = WarmupCosine(warmup=2, total=10, hold=1.0, floor=0.5)
    assert held(9) == 1
    assert held(10) == 1  # the decay has no steps
    assert WarmupCosine(warmup=9, total=4)(3) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": -1}, "warmup >= 0"),
        ({"total": 0}, "total >= 1"),
        ({"floor": 1.1}, "floor and hold"),
        ({"floor": -0.1}, "floor and hold"),
        ({"hold": 2.0}, "floor and hold"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupCosine(**{"warmup": 1, "total": 10, **changes})


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"trainer.max_steps": -1, "trainer.max_epochs": 2}, 6),
        ({"trainer.max_steps": 5, "trainer.max_epochs": 2}, 5),
        ({"trainer.max_epochs": 2, "stage.accumulate": 2, "trainer.max_steps": 50}, 4),
    ],
    ids=["epochs", "fewer steps", "accumulated"],
)
def test_training_by_epochs_ends_with_the_schedule(
    changes: dict[str, Any], steps: int, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Epochs of three batches; the rate falls from the first step on, to the floor after the last."""
    values = {
        **settings(images, tmp_path, "epochs", "vqvae"),
        "data.epoch_batches": 3,
        "stage.schedule.hold": 0,
        "stage.schedule.floor": 0,
        "stage.optimizer.lr": 1e-3,
        **changes,
    }
    folder = run(values)
    assert checkpoint(folder)["global_step"] == steps
    factor = 0.5 * (1 + math.cos(math.pi * (steps - 1) / steps))
    rates = [value for row in figures(folder) for key, value in row.items() if key.startswith("lr-")]
    assert rates[-1] == pytest.approx(1e-3 * factor, rel=1e-6)
    run(settings(images, tmp_path, "epochs", "transform", 1))
    assert "unfinished" not in caplog.text


def test_a_run_without_an_end_is_refused(images: Path, tmp_path: Path) -> None:
    values = {**settings(images, tmp_path, "endless", "vqvae"), "trainer.max_steps": -1}
    with pytest.raises(UsageError, match=r"give trainer\.max_steps, or trainer\.max_epochs with data"):
        run(values)
