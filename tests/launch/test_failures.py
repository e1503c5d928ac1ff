"""What Lightning, PyTorch and Hydra refuse is one line that names the key, and nothing is written."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from glc.launch import UsageError
from glc.launch.hardware import check_devices
from tests.short_runs import run, settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"stage.optimizer._target_": "torch.optim.AdamWW"},
            "stage.optimizer._target_=torch.optim.AdamWW: cannot ",
        ),
        (
            {"+stage.losses.edge._target_": "nowhere.Edge"},
            "stage.losses.edge._target_=nowhere.Edge: cannot be ",
        ),
        (
            {"+callbacks.own._target_": "nowhere.Own"},
            "callbacks.own._target_=nowhere.Own: cannot be imported",
        ),
        ({"+stage.optimizer.foo": 1}, "stage.optimizer.foo: AdamW has no such option; it has lr, betas"),
        ({"+data.foo": 1}, "data: ImageDataModule.__init__() got an unexpected keyword argument 'foo'"),
        ({"trainer.strategy": "abc"}, "trainer: You selected an invalid strategy name"),
        ({"+trainer.profiler": "abc"}, "trainer: When passing string value for the `profiler`"),
        ({"model.encoder.norm": "abc"}, "model.encoder: norm must be group, pixel or none, got 'abc'"),
        ({"perceptual.required": "true"}, "or set perceptual.weights_dir= to a folder"),
    ],
)
def test_refusals_name_the_key_and_nothing_is_written(
    images: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    values = settings(images, tmp_path / "runs", "refused", "vqvae", 2)
    with pytest.raises(UsageError) as caught:
        run({**values, "logger": "default", **changes})
    assert said in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("given", "gpus", "said"),
    [
        (
            {"accelerator": "gpu"},
            0,
            "trainer.accelerator=gpu: PyTorch finds no GPU on this machine; give cpu or auto",
        ),
        (
            {"accelerator": "cuda", "devices": 4},
            1,
            "trainer.devices=4: PyTorch finds 1 on this machine; give at most 1",
        ),
        (
            {"accelerator": "auto", "devices": [0, 2]},
            2,
            "trainer.devices=[0, 2]: PyTorch finds 2 on this machine",
        ),
        ({"accelerator": "auto", "devices": 8}, 0, None),
        ({"accelerator": "gpu", "devices": 2}, 2, None),
        ({"accelerator": "cpu", "devices": 2}, 1, None),
    ],
)
def test_gpus_must_be_there(
    given: dict[str, Any], gpus: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    if said is None:
        check_devices(OmegaConf.create(given))
        return
    with pytest.raises(UsageError) as caught:
        check_devices(OmegaConf.create(given))
    assert said in str(caught.value)
