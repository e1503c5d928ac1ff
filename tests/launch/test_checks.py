"""Missing values, files, folders and conflicts, found before torch is imported."""

from pathlib import Path

import pytest

from glc.launch import UsageError, compose
from glc.launch.checks import check_command, local_processes


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "images").mkdir()
    data = [f"data.{key}={tmp_path / 'images'}" for key in ("train", "val")]
    return ["stage=vqvae", "model=tiny", "data=folder", *data, f"runs_dir={tmp_path / 'runs'}"]


def message(words: list[str], config_name: str = "train") -> str:
    with pytest.raises(UsageError) as caught:
        check_command(words, config_name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_command_that_can_run_passes(words: list[str], tmp_path: Path) -> None:
    check_command([*words, "trainer.val_check_interval=0.5", "init_from=none", "resume=auto"], "train")
    pattern = str(tmp_path / "none-{000..009}.tar")
    check_command([*words, f"data.train='{pattern}'", "data.val='pipe:cat x.tar'"], "train")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.train=nowhere", "data.train: nowhere: no such file or folder; make them with `glc pack"),
        ("init_from=[a.ckpt,small]", "init_from: a.ckpt: no such file or folder; correct the path"),
        ("resume=runs/x/last.ckpt", "resume: runs/x/last.ckpt: no such file or folder"),
        ("perceptual.weights_dir=nowhere", "perceptual.weights_dir: nowhere: no such file or folder"),
        ("data.val=???", "data.val: no value; give data.val=..."),
        ("trainer.val_check_interval=1001", "longer than an epoch of 1000 batches (data.epoch_batches)"),
        ("trainer.val_check_interval=1.5", "a share of an epoch above 0.0 and at most 1.0"),
    ],
)
def test_what_cannot_run_is_one_line(words: list[str], word: str, said: str) -> None:
    assert said in message([*words, word])


def test_an_interval_over_epochs_is_possible(words: list[str]) -> None:
    more = ["trainer.val_check_interval=1001", "trainer.check_val_every_n_epoch=null"]
    check_command([*words, *more], "train")


def test_a_run_without_a_logger_names_the_callback(words: list[str]) -> None:
    no_logger = [*words, "logger=csv", "logger.csv=null"]
    assert "give callbacks.learning_rate=null too" in message(no_logger)
    check_command([*no_logger, "callbacks.learning_rate=null"], "train")


def test_a_folder_that_cannot_be_written_is_refused(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    assert message(words) == (
        f"runs_dir={tmp_path / 'runs'}: {tmp_path / 'runs'} is a file, not a folder; choose another folder"
    )
    (tmp_path / "runs").unlink()
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    assert f"is a link to {tmp_path / 'gone'}, which does not exist" in message(words)
    (tmp_path / "out").write_text("")
    evaluation = ["codec=jpeg", f"out={tmp_path / 'out'}", f"testset.path={tmp_path / 'images'}"]
    assert "is a file, not a folder" in message(evaluation, "evaluate")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can write")
def test_a_folder_without_permission_is_refused(words: list[str]) -> None:
    assert message([*words, "runs_dir=/proc/runs"]).startswith("runs_dir=/proc/runs: cannot write to /proc (")


def test_jobs_on_other_machines_may_have_other_files(words: list[str]) -> None:
    missing = ["-m", *words, "data.train=/scratch/nowhere", "seed=1,2"]
    assert "no such file" in message(missing)
    check_command([*missing, "hydra/launcher=slurm"], "train")


@pytest.mark.parametrize(
    ("config_name", "more", "found"),
    [
        ("train", [], ["data.num_workers=4"]),
        ("train", ["data.num_workers=0"], []),
        ("train", ["data.num_workers=0", "trainer.devices=2"], ["trainer.devices=2"]),
        (
            "train",
            ["data.num_workers=0", "trainer.devices=[0,1]", "data.batch_size=1"],
            ["trainer.devices=[0, 1]"],
        ),
        ("evaluate", ["processes=8"], ["processes=8"]),
        ("evaluate", [], []),
    ],
)
def test_settings_that_start_processes(config_name: str, more: list[str], found: list[str]) -> None:
    start = {"train": ["stage=vqvae", "model=tiny"], "evaluate": ["codec=small", "out=x"]}[config_name]
    assert local_processes(compose(config_name, [*start, *more])) == found
