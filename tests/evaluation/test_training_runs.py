"""Reading training runs: resumed, killed, just started, writing, and named alike."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from glc.evaluation.results import ResultsError
from glc.evaluation.training_runs import (
    TrainingRun,
    differences,
    find_evaluations,
    find_runs,
    read_panel,
    read_training_run,
    read_training_runs,
)
from tests.evaluation.fake_run import write_run
from tests.evaluation.fake_training import (
    GREY,
    SIDE,
    config,
    rows_of,
    write_histogram,
    write_panels,
    write_sweep,
    write_training,
    write_version,
)


def read(folder: Path) -> TrainingRun:
    return read_training_run(folder, "run")


def values(run: TrainingRun, key: str) -> dict[int, float]:
    found = run.series[key]
    return dict(zip(found.steps.tolist(), found.values.tolist(), strict=True))


def test_rows_become_a_series_per_key(tmp_path: Path) -> None:
    rows = [{"step": 0, "train/loss": 2.0}, {"step": 0, "val/loss": 4.0}, {"step": 9, "train/loss": 1.0}]
    write_version(tmp_path, rows, config(tmp_path))
    run = read(tmp_path)
    assert values(run, "train/loss") == {0: 2.0, 9: 1.0}
    assert values(run, "val/loss") == {0: 4.0}
    assert (run.step, run.starts, run.stage) == (9, 1, "transform")


@pytest.mark.parametrize("tail", ["19,0.2", "19", "1", "19,0.2\0\0\0\0", '19,"0', "\0" * 50])
def test_a_half_written_last_line_is_not_read(tmp_path: Path, tail: str) -> None:
    path = write_version(tmp_path, [{"step": 9, "train/loss": 1.0}], None)
    path.write_text(path.read_text() + tail)
    assert values(read(tmp_path), "train/loss") == {9: 1.0}


@pytest.mark.parametrize("line", ["19\n", "x,2.0\n", "19,low\n", "19,1,2,3\n", ",\n", "\n"])
def test_a_damaged_line_does_not_hide_the_others(tmp_path: Path, line: str) -> None:
    path = write_version(tmp_path, [{"step": 9, "train/loss": 1.0}], None)
    path.write_text(path.read_text() + line + "29,0.5\n")
    assert values(read(tmp_path), "train/loss") == {9: 1.0, 29: 0.5}


@pytest.mark.parametrize("content", ["", "step", "loss\n1\n", "\0\0\0"])
def test_a_file_without_rows(tmp_path: Path, content: str) -> None:
    write_version(tmp_path, [{"step": 9, "train/loss": 1.0}], None).write_text(content)
    assert read(tmp_path).step is None


def test_the_later_of_two_rows_of_a_step_counts(tmp_path: Path) -> None:
    write_version(tmp_path, [{"step": 9, "train/loss": 1.0}, {"step": 9, "train/loss": 3.0}], None)
    assert values(read(tmp_path), "train/loss") == {9: 3.0}


def test_a_resumed_run_discards_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    first = [{"step": step, "train/loss": 1.0} for step in (0, 9, 19, 29)] + [{"step": 19, "val/loss": 5.0}]
    write_version(tmp_path, first, config(tmp_path, seed=1))
    resumed = [{"step": 19, "train/loss": 2.0}, {"step": 24, "train/loss": 2.0}]
    write_version(tmp_path, resumed, config(tmp_path, seed=2), version=1)
    run = read(tmp_path)
    assert values(run, "train/loss") == {0: 1.0, 9: 1.0, 19: 2.0, 24: 2.0}
    assert values(run, "val/loss") == {19: 5.0}
    assert (run.starts, run.settings["seed"]) == (2, 2)


def test_versions_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for version in (2, 10):
        write_version(tmp_path, [{"step": 0, "train/loss": float(version)}], None, version)
    assert values(read(tmp_path), "train/loss") == {0: 10.0}


def test_a_run_that_was_started_again_is_the_new_one(tmp_path: Path) -> None:
    write_version(tmp_path, rows_of(), None)
    write_version(tmp_path, [{"step": 0, "train/loss": 7.0}], None, version=1)
    assert values(read(tmp_path), "train/loss") == {0: 7.0}


def test_values_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    rows = [{"step": 0, "train/loss": math.inf}, {"step": 1, "train/loss": math.nan}]
    write_version(tmp_path, rows, None)
    found = read(tmp_path).series["train/loss"].values
    assert found[0] == math.inf
    assert math.isnan(found[1])


def test_means_over_the_rate_points(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "val/psnr/0": 20.0, "val/psnr/1": 23.0, "val/loss/0": 1.0, "val/loss/1": 3.0},
        {"step": 9, "val/psnr/0": 21.0},
        {"step": 9, "val/loss": 9.0},
    ]
    write_version(tmp_path, rows, None)
    run = read(tmp_path)
    assert values(run, "val/psnr") == {0: 21.5}  # not at step 9, which one rate point lacks
    assert values(run, "val/loss") == {9: 9.0}  # the stage's own
    assert run.rate_points("psnr") == [0, 1]


def test_a_run_that_only_started(tmp_path: Path) -> None:
    write_version(tmp_path / "name" / "joint", [], None)
    (run,) = read_training_runs([tmp_path / "name"])
    assert (run.name, run.stage, run.step, run.changed) == ("joint", "joint", None, None)
    assert not run.series


def test_the_configuration_is_that_of_the_last_start_or_of_hydra(tmp_path: Path) -> None:
    path = write_version(tmp_path, rows_of(), config(tmp_path, seed=1)).with_name("hparams.yaml")
    hydra = tmp_path / ".hydra" / "config.yaml"
    hydra.parent.mkdir()
    hydra.write_text("seed: 7\n")
    assert read(tmp_path).settings["seed"] == 1
    for broken in ("", "a: [1,", "- 1\n", "\0"):
        path.write_text(broken)
        assert read(tmp_path).settings == {"seed": 7}
    hydra.unlink()
    assert read(tmp_path).settings == {}


def test_runs_and_evaluations_are_found(tmp_path: Path) -> None:
    write_sweep(tmp_path, (2.0, 10.0))
    write_training(tmp_path / "vqvae", stage="vqvae")
    for hidden in ("wandb/offline-run-1", ".submitit", "vqvae/checkpoints"):
        write_version(tmp_path / hidden, rows_of(), None)
    write_run(tmp_path / "results" / "kodak")
    (tmp_path / "results" / "unfinished").mkdir()
    sweep = tmp_path / "transform"
    assert set(find_runs(tmp_path)) == {
        tmp_path / "vqvae",
        sweep / "stage.lmbda-2",
        sweep / "stage.lmbda-10",
    }
    assert find_evaluations(tmp_path) == [tmp_path / "results" / "kodak"]
    names = [run.name for run in read_training_runs([tmp_path])]
    assert names == ["vqvae", "transform/stage.lmbda-2", "transform/stage.lmbda-10"]


def test_runs_of_equal_names_are_told_apart(tmp_path: Path) -> None:
    for place in ("a/runs/x", "b/runs/x"):
        write_training(tmp_path / place / "joint", stage="joint")
    given = [tmp_path / "a" / "runs" / "x", tmp_path / "b" / "runs" / "x", tmp_path / "a"]
    assert [run.name for run in read_training_runs(given)] == ["x/joint", "x/joint (2)"]
    assert [run.name for run in read_training_runs([tmp_path / "a/runs/x/joint"])] == ["joint"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="gone: does not exist; give the folder"):
        read_training_runs([tmp_path / "gone"])
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match="file: is a file; give the folder"):
        read_training_runs([tmp_path / "file"])


def test_only_differing_settings_are_compared(tmp_path: Path) -> None:
    write_sweep(tmp_path, (1.0, 2.0))
    # Another stage differs in many keys, but not from a run of its own stage.
    write_training(tmp_path / "vqvae", stage="vqvae", data={"crop": 64}, stage__lmbda=None)
    found = differences(read_training_runs([tmp_path]))
    assert found == {"stage.lmbda": [None, 1.0, 2.0]}


def test_settings_of_one_run_or_of_runs_without_a_configuration(tmp_path: Path) -> None:
    write_sweep(tmp_path, (1.0, 2.0))
    assert differences(read_training_runs([tmp_path / "transform" / "stage.lmbda-1"])) == {}
    write_version(tmp_path / "transform" / "bare", rows_of(), None)
    assert differences(read_training_runs([tmp_path])) == {"stage.lmbda": [None, 1.0, 2.0]}


def test_lists_and_booleans_are_compared_as_values(tmp_path: Path) -> None:
    write_training(tmp_path / "a", stage__betas=[0.9, 0.99], stage__noise=True)
    write_training(tmp_path / "b", stage__betas=[0.9, 0.999], stage__noise=True)
    assert differences(read_training_runs([tmp_path])) == {"stage.betas": [[0.9, 0.99], [0.9, 0.999]]}


def test_panels_name_their_images(tmp_path: Path) -> None:
    write_version(tmp_path, rows_of(), None)
    write_panels(tmp_path, steps=(0, 100), images=2, rates=2)
    (tmp_path / "panels" / "notes.txt").touch()
    panels = read(tmp_path).panels
    assert [(panel.image, panel.step) for panel in panels] == [(0, 0), (0, 100), (1, 0), (1, 100)]
    images = read_panel(panels[1], 0)
    assert list(images) == ["x", "rate_0", "rate_1"]
    assert {image.size for image in images.values()} == {(SIDE, SIDE)}
    assert images["x"].getpixel((0, 0)) == GREY
    assert images["rate_1"].getpixel((SIDE - 1, SIDE - 1)) == (100, 40, 200)


@pytest.mark.parametrize(("rates", "names"), [(0, ["x", "x_hat"]), (3, ["x", "rate_0", "rate_1", "rate_2"])])
def test_panels_of_older_versions_are_divided_by_the_rate_points(
    tmp_path: Path, rates: int, names: list[str]
) -> None:
    write_version(tmp_path, rows_of(), None)
    (tmp_path / "panels").mkdir()
    path = tmp_path / "panels" / "00-step-000000.png"
    Image.new("RGB", (len(names) * SIDE, SIDE)).save(path)
    (panel,) = read(tmp_path).panels
    assert list(read_panel(panel, rates)) == names
    path.write_bytes(path.read_bytes()[:40])  # half written
    assert read_panel(panel, rates) == {}
    Image.new("RGB", (len(names) * SIDE + 1, SIDE)).save(path)
    assert read_panel(panel, rates) == {}


def test_the_last_histogram_counts(tmp_path: Path) -> None:
    write_version(tmp_path, rows_of(), None)
    write_histogram(tmp_path, step=50)
    write_histogram(tmp_path, step=100)
    path = tmp_path / "csv" / "version_0" / "histograms.jsonl"
    path.write_text(path.read_text() + json.dumps({"step": 150, "name": "val/x_histogram"})[:30])
    found = read(tmp_path).histograms
    assert list(found) == ["hyper_codebook"]
    assert found["hyper_codebook"].step == 100
    assert np.diff(found["hyper_codebook"].edges).tolist() == [1.0] * 8


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_version(tmp_path, [{"step": 9, "train/loss": 1.0}], {"seed": 1})
    assert read(tmp_path).step == 9
    path.write_text(path.read_text() + "19,0.5\n")
    path.with_name("hparams.yaml").write_text(yaml.safe_dump({"seed": 2}))
    assert values(read(tmp_path), "train/loss") == {9: 1.0, 19: 0.5}
    assert read(tmp_path).settings == {"seed": 2}
