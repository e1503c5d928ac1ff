"""A resumed run follows its own configuration: learning rate, schedule and length; moments are kept."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from glc.training.resuming import _forward, misfit
from tests.short_runs import checkpoint, figures, live_weights, run, settings


def options(images: Path, runs: Path, name: str, steps: int, **changes: Any) -> dict[str, Any]:
    """A run with a schedule that ends at its last step; one epoch."""
    return {
        **settings(images, runs, name, "vqvae", steps),
        **{"data.epoch_batches": 9, "stage.optimizer.lr": 1e-3, "stage.schedule.hold": 0},
        **changes,
    }


def rates(folder: Path, version: int = 0, key: str = "lr-AdamW") -> list[float]:
    return [row[key] for row in figures(folder, version) if key in row]


SETTINGS: dict[str, dict[str, Any]] = {
    "longer": {},
    "rate": {"stage.optimizer.lr": 4e-4},
    "decay": {"stage.optimizer.weight_decay": 0.3, "stage.optimizer.betas": "[0.3, 0.7]"},
    "schedule": {"stage.schedule.warmup": 4, "stage.schedule.floor": 0.5},
    "torch": {
        "stage.schedule._target_": "torch.optim.lr_scheduler.ExponentialLR",
        "+stage.schedule._partial_": "true",
        "+stage.schedule.gamma": 0.5,
    },
}


@pytest.mark.parametrize("change", SETTINGS)
def test_the_configuration_wins_on_resume(images: Path, tmp_path: Path, change: str) -> None:
    changes = SETTINGS[change]
    first = options(images, tmp_path, "resumed", 2)
    run(first)
    before = checkpoint(tmp_path / "resumed" / "vqvae")
    resumed = run({**options(images, tmp_path, "resumed", 5, **changes), "resume": "last"})
    whole = run(options(images, tmp_path, "whole", 5, **changes))
    assert rates(resumed, 1) == rates(whole)[2:]
    after, expected = checkpoint(resumed), checkpoint(whole)
    assert [
        group | {"params": 0} for state in after["optimizer_states"] for group in state["param_groups"]
    ] == [group | {"params": 0} for state in expected["optimizer_states"] for group in state["param_groups"]]
    assert after["lr_schedulers"] == expected["lr_schedulers"]
    recipe, wanted = after["glc"]["recipe"], expected["glc"]["recipe"]
    assert recipe["stage"] == wanted["stage"]
    assert recipe["trainer"]["max_steps"] == 5
    # Moments continue: they are not those of a new optimizer after three steps.
    steps = [int(state["step"]) for state in after["optimizer_states"][0]["state"].values()]
    assert set(steps) == {5}
    assert set(before["optimizer_states"][0]["state"]) == set(after["optimizer_states"][0]["state"])


def test_a_longer_run_equals_one_in_one_go(images: Path, tmp_path: Path) -> None:
    """With a constant rate the first steps do not depend on the length, so that all weights are equal."""
    flat = {"stage.schedule.hold": 1}
    run(options(images, tmp_path, "longer", 2, **flat))
    longer = run({**options(images, tmp_path, "longer", 4, **flat), "resume": "last"})
    whole = live_weights(checkpoint(run(options(images, tmp_path, "whole", 4, **flat))))
    assert all(torch.equal(v, whole[k]) for k, v in live_weights(checkpoint(longer)).items())


def test_another_optimizer_starts_with_a_new_state(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(options(images, tmp_path, "sgd", 1))
    changes = {"stage.optimizer._target_": "torch.optim.SGD", "+stage.optimizer.momentum": 0.9}
    folder = run({**options(images, tmp_path, "sgd", 3, **changes), "resume": "last"})
    assert "the state of optimizer 1 starts anew: SGD has no option amsgrad" in caplog.text
    assert {k for s in checkpoint(folder)["optimizer_states"][0]["state"].values() for k in s} == {
        "momentum_buffer"
    }
    caplog.clear()
    grouped = {**changes, "stage.parameter_groups": '[{match: "*.decoder.*", lr_factor: 0.5}]'}
    folder = run({**options(images, tmp_path, "sgd", 4, **grouped), "resume": "last"})
    assert "the state of optimizer 1 starts anew: other parameter groups" in caplog.text
    assert "optimizer 2" not in caplog.text
    assert len(checkpoint(folder)["optimizer_states"][0]["param_groups"]) == 2


def test_without_ema_the_live_weights_are_trained_further(images: Path, tmp_path: Path) -> None:
    with_ema = checkpoint(run(options(images, tmp_path, "ema", 2)))
    values = options(images, tmp_path, "ema", 3, **{"callbacks.ema": "null", "stage.optimizer.lr": 0})
    values |= {"resume": "last", "callbacks.codebooks": "null"}
    state = checkpoint(run(values))["state_dict"]
    live = with_ema["current_model_state"]
    trained = [key for key in state if key.startswith("autoencoder.encoder.")]
    assert all(torch.equal(state[key], live[key]) for key in trained)
    assert not all(torch.equal(state[key], with_ema["state_dict"][key]) for key in trained)


def test_a_complete_run_says_that_nothing_is_left(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run(options(images, tmp_path, "done", 2))
    run({**options(images, tmp_path, "done", 2), "resume": "last"})
    last = folder / "checkpoints" / "last.ckpt"
    assert f"{last} is at step 2: nothing to train up to trainer.max_steps=2" in caplog.messages


ADAMW = partial(torch.optim.AdamW, lr=0.1)
SGD = partial(torch.optim.SGD, lr=0.1)
RMSPROP = partial(torch.optim.RMSprop, lr=0.1)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (ADAMW, partial(ADAMW, lr=0.2, betas=(0.1, 0.2), weight_decay=1, fused=True), None),
        (ADAMW, partial(torch.optim.Adam, lr=0.1), None),
        (partial(SGD, momentum=0.9), partial(SGD, momentum=0.5, nesterov=True), None),
        (ADAMW, partial(ADAMW, amsgrad=True), "amsgrad was False"),
        (RMSPROP, partial(RMSPROP, momentum=0.9), "momentum was 0"),
        (ADAMW, SGD, "SGD has no option amsgrad"),
        (SGD, ADAMW, "AdamW has no option dampening"),
    ],
)
def test_states_are_kept_where_they_fit(old: Any, new: Any, reason: str | None) -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    before = old([parameter])
    before.step()
    after = new([parameter])
    assert misfit(after, before.state_dict()) == reason
    if reason is None:
        groups = after.state_dict()["param_groups"]
        after.load_state_dict({"state": before.state_dict()["state"], "param_groups": groups})
        after.step()
    assert misfit(new([nn.Parameter(torch.ones(4))]), before.state_dict()) in (
        "other parameter groups",
        reason,
    )


@pytest.mark.parametrize(
    "make",
    [
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (step + 1)),
        partial(lr_scheduler.CosineAnnealingLR, T_max=7),
        partial(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=9),
        partial(lr_scheduler.StepLR, step_size=2, gamma=0.3),
    ],
)
def test_a_forwarded_scheduler_equals_a_stepped_one(make: Any) -> None:
    stepped, forwarded = (make(torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=0.1)) for _ in range(2))
    for _ in range(5):
        stepped.optimizer.step()
        stepped.step()
    _forward(forwarded, 5)
    assert forwarded.state_dict() == stepped.state_dict()
    assert forwarded.optimizer.state_dict()["param_groups"] == stepped.optimizer.state_dict()["param_groups"]
