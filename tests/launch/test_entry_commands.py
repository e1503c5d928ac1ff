"""`python -m src.train` and `glc train` on the command line."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from glc.cli import main
from glc.launch import compose, train
from tests.programs import start
from tests.short_runs import QUIET, arguments, checkpoint, figures, settings, write_images
from tests.wandb_file import read_finished_run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def command(*words: str, entry: str = "src.train", **environment: str) -> "subprocess.CompletedProcess[str]":
    return start(["-m", *entry.split(), *words], environment={**QUIET, **environment})


def words(values: Mapping[str, Any], *more: str) -> list[str]:
    return [*arguments(dict(values)), *more]


def test_without_a_stage_it_lists_them() -> None:
    done = command()
    assert done.returncode != 0
    listed = "gate, joint, polish, restoration, stylization, transform, vqvae"
    assert done.stderr == f"error: stage: no value; give stage=..., one of {listed}\n"


def test_a_mistyped_key_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(["stage=vqvae", "trainer.devcies=8"])
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: trainer.devcies: no such key; did you mean trainer.devices")
    assert shown.err.count("\n") == 1


def test_glc_train_passes_overrides_and_flags_to_hydra() -> None:
    def glc(*words: str) -> Result:
        return CliRunner().invoke(main, ["train", *words])

    shown = glc("stage=vqvae", "model=tiny", "--cfg", "job", "--package", "perceptual")
    assert shown.exit_code == 0
    assert "_target_: glc.losses.reconstruction.load_perceptual" in shown.stdout.splitlines()
    assert glc("stage=vqvae", "modl=tiny").exit_code == 2
    assert "glc train stage=vqvae" in " ".join(glc("--help").stdout.split())


def test_train_returns_folder_checkpoint_and_metrics(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in QUIET.items():
        monkeypatch.setenv(key, value)
    cfg = compose("train", words(settings(images, tmp_path, "mine", "vqvae", 1)))
    result = train.train(cfg)
    assert result.folder == tmp_path / "mine" / "vqvae"
    assert result.checkpoint == result.folder / "checkpoints" / "last.ckpt"
    assert torch.load(result.checkpoint, weights_only=True)["global_step"] == 1
    (row,) = [row for row in figures(result.folder) if "val/loss" in row]
    assert result.metrics["val/loss"] == pytest.approx(row["val/loss"])


def test_errors_that_the_user_can_fix_are_one_line(images: Path, tmp_path: Path) -> None:
    values = settings(images, tmp_path, "required", "vqvae")
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


def test_a_source_that_cannot_be_read_is_refused_and_nothing_is_written(images: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    values = {**settings(images, runs, "refused", "vqvae"), "logger": "default", "data.train": "pipe:false"}
    done = command(*words(values))
    assert done.returncode == 2
    (line,) = (done.stdout + done.stderr).strip().splitlines()
    said = "error: data.train: pipe:false: the command failed with exit code 1; correct the URL or command"
    assert line == said
    assert not (runs / "refused").exists()
    # The folder of an existing run is left as it is.
    (runs / "refused" / "vqvae").mkdir(parents=True)
    (runs / "refused" / "vqvae" / "notes.txt").write_text("keep")
    assert command(*words(values)).returncode == 2
    assert os.listdir(runs / "refused" / "vqvae") == ["notes.txt"]
    # So is Hydra's record of it.
    values = settings(images, runs, "refused", "vqvae", 1)
    assert command(*words(values)).returncode == 0
    record = {path.name: path.read_text() for path in (runs / "refused" / "vqvae" / ".hydra").iterdir()}
    assert set(record) == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert yaml.safe_load(record["overrides.yaml"]) == words(values)
    assert yaml.safe_load(record["config.yaml"])["dir"].startswith("${output_dir:")
    assert (
        command(*words({**values, "resume": "last", "seed": 3, "data.train": "pipe:false"})).returncode == 2
    )
    assert record == {
        path.name: path.read_text() for path in (runs / "refused" / "vqvae" / ".hydra").iterdir()
    }


def swept(images: Path, runs: Path, stage: str = "transform") -> dict[str, Any]:
    values = settings(images, runs, "sweep", stage, 1)
    return {**values, "init_from": "none", "logger": "default"}


def test_a_sweep_names_its_runs_and_continues_after_a_failure(images: Path, tmp_path: Path) -> None:
    """With joblib in the process of the command: other processes would repeat the imports."""
    values = swept(images, tmp_path) | {"hydra/launcher": "local", "hydra.launcher.n_jobs": 1}
    done = command("-m", *words({**values, "stage.lmbda": "0.5,1e300,4"}), WANDB_DIR=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: training diverged" in done.stdout + done.stderr
    root = tmp_path / "sweep" / "transform"
    runs = sorted(path.parent for path in root.glob("*/wandb-id.txt"))
    assert len(runs) == 3
    for run, lmbda in zip(runs, ("0.5", "1e+300", "4"), strict=True):
        assert run == root / f"stage.lmbda-{lmbda}"
        identity = (run / "wandb-id.txt").read_text()
        (logged,) = tmp_path.glob(f"wandb/offline-run-*/run-{identity}.wandb")  # WANDB_DIR
        ended = read_finished_run(logged)
        assert (ended.identity, ended.name) == (identity, run.relative_to(tmp_path).as_posix())
        assert ended.exit_code == (1 if lmbda == "1e+300" else 0)
        if ended.exit_code == 0:
            assert checkpoint(run)["glc"]["recipe"]["stage"]["lmbda"] == float(lmbda)
    assert len({(run / "wandb-id.txt").read_text() for run in runs}) == 3


def test_a_submitit_sweep_exits_with_the_code_of_its_jobs(images: Path, tmp_path: Path) -> None:
    """The local executor starts a process for the job, like SLURM."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    values = swept(images, tmp_path) | {"hydra/launcher": "submitit_local", "stage.lmbda": "1e300"}
    folder = f"hydra.launcher.submitit_folder={tmp_path / 'jobs' / '%j'}"
    done = command("-m", *words(values), folder, "hydra.launcher.timeout_min=4", WANDB_DIR=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "training diverged" in done.stdout + done.stderr
    (logged,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")  # WANDB_DIR
    assert read_finished_run(logged).exit_code == 1


def test_an_optuna_search_continues_after_a_diverged_trial_and_in_a_second_command(
    images: Path, tmp_path: Path
) -> None:
    """Trials in processes of their own; `tests/launch/test_optuna_sweeper.py` has the rest."""
    pytest.importorskip("optuna", minversion="4", reason="needs the extra `sweep`")
    search = {
        "sweep": "optuna",
        "seed": 11,  # samples the diverging value first
        "logger": "csv",
        "hydra.sweeper.n_trials": 2,
        "stage.lmbda": "choice(1.0,1e300)",
        "hydra/launcher": "local",
        "hydra.launcher.n_jobs": 1,
    }
    done = command("-m", *words({**swept(images, tmp_path), **search}))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "trial-0 failed: training diverged" in done.stderr
    assert "1 of 2 trials failed: trial-0" in done.stderr.splitlines()[-1]
    root = tmp_path / "sweep" / "transform"
    assert "stage.lmbda: 1.0" in (root / "optimization_results.yaml").read_text()
    assert [path.parts[-3] for path in root.rglob("last.ckpt")] == ["trial-1"]
    again = {**swept(images, tmp_path), **search, "hydra.sweeper.n_trials": 1, "stage.lmbda": "1.0"}
    done = command("-m", *words(again))
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.parts[-3] for path in root.rglob("last.ckpt")) == ["trial-1", "trial-2"]


def test_a_sweep_in_yaml_names_its_runs_like_the_command_line(images: Path, tmp_path: Path) -> None:
    """The file is in a user's folder; a second key is swept on the command line."""
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      stage.lmbda: 0.5,4\n"
    )
    values = {**swept(images, tmp_path / "runs"), "logger": "csv", "sweep": "mine", "seed": "1,2"}
    done = command("-m", "--config-dir", str(tmp_path / "conf"), *words(values))
    assert done.returncode == 0, done.stdout + done.stderr
    runs = {path.parents[1].name for path in (tmp_path / "runs").rglob("last.ckpt")}
    assert runs == {f"stage.lmbda-{lmbda}_seed-{seed}" for lmbda in ("0.5", "4") for seed in (1, 2)}


def test_glc_train_starts_the_second_process_of_ddp(images: Path, tmp_path: Path) -> None:
    values = {
        **settings(images, tmp_path, "ddp", "vqvae", 2),
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
        "batch": 4,
        "validate_first": "true",
        "logger": "default",
    }
    del values["data.batch_size"]
    done = command(*words(values), entry="glc train")
    assert done.returncode == 0, done.stdout + done.stderr
    # One run, written by one process.
    assert [path.name for path in tmp_path.iterdir()] == ["ddp"]
    (last,) = tmp_path.rglob("last.ckpt")
    assert checkpoint(last.parents[1])["global_step"] == 2
    assert len(list(last.parents[1].glob("csv/*"))) == 1
    # A resumed run finds its W&B run by the id that the first process saved.
    (logged,) = last.parents[1].glob("wandb/offline-run-*")
    assert logged.name.endswith((last.parents[1] / "wandb-id.txt").read_text())
    rows = [row for row in figures(last.parents[1]) if "train/loss" in row]
    assert [row["step"] for row in rows] == [0, 1]
