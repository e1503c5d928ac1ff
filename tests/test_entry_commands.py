"""`python -m src.train` as a user types it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from src import train
from tests.short_runs import QUIET, ROOT, arguments, checkpoint, figures, settings, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def command(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "src.train", *words],
        cwd=ROOT,
        env={**os.environ, **QUIET, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def words(values: Mapping[str, Any], *more: str) -> list[str]:
    return [*arguments(dict(values)), *more]


def test_without_a_stage_it_lists_them() -> None:
    done = command()
    assert done.returncode != 0
    listed = done.stderr.split("Available options:")[1].split("Set the")[0].split()
    assert listed == ["joint", "restoration", "stylization", "transform", "vqvae"]
    assert "Traceback" not in done.stderr


def test_a_mistyped_key_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "stage=vqvae", "trainer.devcies=8"])
    with pytest.raises(SystemExit) as caught:
        train.main()
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: there is no key 'trainer.devcies': did you mean trainer.devices")
    assert shown.err.count("\n") == 1


def test_what_the_user_can_mend_is_one_line(pictures: Path, tmp_path: Path) -> None:
    values = settings(pictures, tmp_path, "required", "vqvae")
    done = command(*words({**values, "perceptual.required": "true"}))
    assert done.returncode == 2
    output = (done.stdout + done.stderr).strip().splitlines()
    errors = [line for line in output if line.startswith("error: ")]
    assert len(errors) == 1
    assert "no weights for vgg16" in errors[0]
    assert "perceptual.required=false" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("metrics.csv"))


def test_a_sweep_makes_one_well_named_run_each(pictures: Path, tmp_path: Path) -> None:
    values = settings(pictures, tmp_path, "sweep", "transform", 1)
    # What any user may leave to the defaults, so that the names stay short.
    for key in ("data.val_limit", "metrics", "stage.schedule.warmup", "perceptual.required"):
        del values[key]
    del values["trainer.log_every_n_steps"]
    values |= {"init_from": "none", "stage.lmbda": "0.5,4", "logger": "default"}
    done = command("-m", *words(values), WANDB_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    root = tmp_path / "sweep" / "transform"
    runs = sorted(path.parent.parent for path in root.rglob("last.ckpt"))
    assert len(runs) == 2
    for run, lmbda in zip(runs, (0.5, 4), strict=True):
        assert run.name.endswith(f"_model-tiny_stage.lmbda-{lmbda}_trainer.max_steps-1")
        assert run.parent == root  # no path of the pictures in the name
        assert "=" not in str(run)
        assert checkpoint(run)["glc"]["recipe"]["stage"]["lmbda"] == lmbda
        assert len(list(run.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    assert len({(run / "wandb-id.txt").read_text() for run in runs}) == 2


def test_two_processes_from_the_command_line(pictures: Path, tmp_path: Path) -> None:
    values = {
        **settings(pictures, tmp_path, "ddp", "vqvae", 2),
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
        "batch": 4,
        "validate_first": "true",
        "logger": "default",
    }
    del values["data.batch_size"]
    done = command(*words(values))
    assert done.returncode == 0, done.stdout + done.stderr
    # One run, written by one process.
    assert [path.name for path in tmp_path.iterdir()] == ["ddp"]
    (last,) = tmp_path.rglob("last.ckpt")
    assert checkpoint(last.parents[1])["global_step"] == 2
    assert len(list(last.parents[1].glob("csv/*"))) == 1
    # A resumed run finds its W&B run by the identity that the first process wrote.
    (logged,) = last.parents[1].glob("wandb/offline-run-*")
    assert logged.name.endswith((last.parents[1] / "wandb-id.txt").read_text())
    rows = [row for row in figures(last.parents[1]) if "train/loss" in row]
    assert [row["step"] for row in rows] == [0, 1]
