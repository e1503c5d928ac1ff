"""The lines that a run logs at its start and its end."""

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from glc.launch import compose
from glc.launch.train import train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (60 * i, 90, 200)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    return [
        *("stage=vqvae", "model=tiny", "data=folder", f"data.train={folder / 'images'}"),
        *(f"data.val={folder / 'images'}", "data.crop=64", "data.val_limit=2", "batch=2"),
        *("data.epoch_batches=2", "data.num_workers=0", "trainer.accelerator=cpu", "logger=csv"),
        *("perceptual.required=false", "metrics=none", "name=mine", f"runs_dir={folder / 'runs'}"),
        *more,
    ]


@pytest.mark.usefixtures("offline")
def test_a_run_says_what_it_trains_and_how_it_ended(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "glc"):
        train(compose("train", words(folder, "trainer.max_steps=2")))
    text = caplog.text
    run = folder / "runs" / "mine" / "vqvae"
    assert f"run:      {run}" in text
    assert "device:   1 x cpu, precision 32-true, seed 0" in text
    assert f"threads:  {torch.get_num_threads()}, waiting: " in text
    assert "trained: discriminator 42,961, encoder 174,448, decoder 325,340" in text
    assert "data:     3 training images, 2 validation images" in text
    assert "batch:    2 images per step, 2 steps" in text
    assert "start:    new weights" in text
    assert f"complete: {run}, step 2, 0 min" in text
    assert "val/loss 0." in text
    assert "next: glc train stage=transform name=mine" in text
    caplog.clear()
    with caplog.at_level(logging.INFO, "glc"):
        train(compose("train", words(folder, "stage=transform", "trainer.max_steps=1")))
    assert f"start:    weights of {run / 'checkpoints' / 'last.ckpt'} (step 2)" in caplog.text
    assert "; not trained: encoder 174,448, decoder 325,340, quantizer" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "glc"):
        train(compose("train", words(folder, "trainer.max_steps=3", "resume=last")))
    assert f"start:    resumes {run / 'checkpoints' / 'last.ckpt'} at step 2" in caplog.text


@pytest.mark.usefixtures("offline")
def test_a_milestone_is_saved_without_advice(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    train(
        compose("train", words(folder, "trainer.max_steps=2", "callbacks.milestones.every_n_train_steps=1"))
    )
    assert (folder / "runs" / "mine" / "vqvae" / "checkpoints" / "step-000001.ckpt").is_file()
    assert not [w for w in recwarn if "ModelCheckpoint" in str(w.message)]


@pytest.mark.usefixtures("offline")
def test_no_progress_bar_without_a_terminal(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(compose("train", words(folder, "trainer.max_steps=2")))
    output = capfd.readouterr()
    assert "it/s" not in output.out + output.err
