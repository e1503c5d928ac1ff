"""The range test of learning rates: the rates of each step, the file, and the suggestion."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest

from glc.errors import SettingError
from glc.training.callbacks.lr_find import RangeTest, suggest
from tests.short_runs import figures, run, settings, write_images

RATES = list(np.geomspace(1e-6, 1e-1, 101))


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    logs = np.log10(RATES)
    losses = list(2 - np.tanh(3 * (logs + 4)))  # steepest at 1e-4
    found = suggest(RATES, losses, smoothing=0.0)
    assert found == pytest.approx(1e-4, rel=1e-6)
    # Divergence afterwards does not matter, nor does some noise.
    noise = np.random.default_rng(0).normal(0, 0.01, 101)
    rising = list(np.asarray(losses) + np.where(logs > -2.5, 50 * (logs + 2.5) ** 2, 0) + noise)
    assert suggest([*RATES, 1.0], [*rising, float("nan")]) == pytest.approx(1e-4, rel=1.0)
    assert suggest(RATES, list(np.linspace(1, 2, 101))) is None


def test_a_range_test_sets_the_rates_of_all_optimizers_and_saves_no_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = write_images(tmp_path / "images")
    values = settings(images, tmp_path, "lr", "vqvae", steps=11) | {
        "callbacks": "lr_find",
        "stage.discriminator_start": 0,
        "stage.optimizer.lr": 2e-4,
        "stage.discriminator_optimizer": "{_target_: torch.optim.AdamW, _partial_: true, lr: 1e-4}",
    }
    with caplog.at_level(logging.INFO):
        folder = run(values)
    rates = np.geomspace(1e-6, 1e-1, 11)
    with (folder / "lr_find.csv").open(newline="") as file:
        rows = [(float(row["lr"]), float(row["loss"])) for row in csv.DictReader(file)]
    assert [lr for lr, _ in rows] == pytest.approx(list(rates[: len(rows)]))
    losses = [row["train/loss"] for row in figures(folder) if "train/loss" in row]
    assert [loss for _, loss in rows] == pytest.approx(losses)
    # The discriminator keeps half of the networks' rate.
    for name, ratio in (("lr-AdamW", 1.0), ("lr-AdamW-1", 0.5)):
        logged = [row[name] for row in figures(folder) if name in row]
        assert logged == pytest.approx([ratio * rate for rate in rates[: len(rows)]])
    assert "lr_find.csv" in caplog.text
    assert not list(folder.rglob("*.ckpt"))


def test_ranges_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"callbacks\.lr_find: needs 0 < start < stop, got start=1, stop=0\.1"
    ):
        RangeTest(tmp_path / "x.csv", 1, 0.1)
