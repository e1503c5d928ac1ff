"""Norms per network: their names, their values, and the steps at which they are logged."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from glc.training.networks import trained_networks
from glc.training.stages.base import Stage
from tests.short_runs import checkpoint, figures, live_weights, run, settings

TRAINED = {
    "vqvae": {"encoder", "decoder", "quantizer", "discriminator"},
    "transform": {"coder", "predictor"},
    "joint": {"encoder", "decoder", "coder", "predictor", "discriminator"},
}


@pytest.mark.parametrize("stage", TRAINED)
def test_norms_are_logged_per_network(images: Path, tmp_path: Path, stage: str) -> None:
    folder = run({**settings(images, tmp_path, "norms", stage, 2), "init_from": "none", "stage.clip": 0.01})
    for row in (row for row in figures(folder) if "train/loss" in row):
        gradients = {key[16:]: value for key, value in row.items() if key.startswith("train/grad_norm/")}
        assert gradients.keys() == TRAINED[stage]
        own = [value for name, value in gradients.items() if name != "discriminator"]
        assert sum(value**2 for value in own) ** 0.5 == pytest.approx(row["train/grad_norm"], rel=1e-4)
        assert row["train/grad_norm"] > 0.01  # before clipping
        assert {key[18:] for key in row if key.startswith("train/weight_norm/")} == TRAINED[stage]


def test_weight_norms_are_those_of_the_weights(images: Path, tmp_path: Path) -> None:
    values = {**settings(images, tmp_path, "weights", "vqvae", 2), "stage.optimizer.lr": 0}
    folder = run({**values, "callbacks.codebooks": "null"})
    state = live_weights(checkpoint(folder))
    squares = [value.double().square().sum() for key, value in state.items() if ".encoder." in key]
    row = next(row for row in figures(folder) if "train/loss" in row)
    assert row["train/weight_norm/encoder"] == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-5)


@pytest.mark.parametrize(("accumulate", "rows", "computed"), [(1, [0, 2, 5, 6], 3), (2, [0, 1, 2, 5, 6], 2)])
def test_the_first_step_is_logged_and_norms_only_where_they_are_needed(
    *, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    accumulate: int, rows: list[int], computed: int,
) -> None:  # fmt: skip
    steps = []
    log = Stage.log

    def counted(self: Stage, name: str, *args: Any, **options: Any) -> None:
        if name == "train/grad_norm/encoder":
            steps.append(self.global_step)
        log(self, name, *args, **options)

    monkeypatch.setattr(Stage, "log", counted)
    values = {**settings(images, tmp_path, "first", "vqvae", 7), "trainer.log_every_n_steps": 3}
    values |= {"stage.accumulate": accumulate, "trainer.max_steps": -(-7 // accumulate)}
    folder = run(values)
    logged = [row for row in figures(folder) if "train/loss" in row]
    assert [row["step"] for row in logged] == rows
    assert len(steps) == computed
    assert steps[0] == 0
    assert "train/grad_norm/encoder" in logged[-1]


class Own(nn.Module):
    """A module with networks of its own, of which one is frozen and one is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.frozen = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)


def test_networks_of_other_modules_are_their_children() -> None:
    module = Own()
    found = trained_networks(module)
    assert {name: len(parameters) for name, parameters in found.items()} == {"first": 2, "second": 1}
    assert found["second"][0] is module.second.bias
