"""Rebuilding stages from checkpoints in Python, and refusal of untrusted classes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from glc.codec.weights.export import read_codec
from glc.errors import WeightsError
from glc.io.checkpoint import save_checkpoint
from glc.training import load_stage
from glc.training.stages.base import Stage
from glc.training.stages.joint import JointStage
from glc.training.stages.vqvae import VQVAEStage
from tests.codec.fixed_model import fixed_codec_weights
from tests.short_runs import STAGES, checkpoint, run, settings


@pytest.mark.parametrize("stage", STAGES)
def test_loaded_stage_has_the_checkpoint_weights(stages: dict[str, Path], stage: str) -> None:
    last = stages[stage] / "checkpoints" / "last.ckpt"
    expected = checkpoint(stages[stage])["state_dict"]
    for source in (last, stages[stage]):
        loaded = load_stage(source)
        assert isinstance(loaded, Stage)
        assert not loaded.training
        assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    again = type(loaded).load_from_checkpoint(last)
    assert type(again) is type(loaded)
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


def test_loading_as_another_class_is_refused(stages: dict[str, Path]) -> None:
    assert isinstance(Stage.load_from_checkpoint(stages["joint"]), JointStage)
    with pytest.raises(WeightsError, match="holds a JointStage, not a VQVAEStage"):
        VQVAEStage.load_from_checkpoint(stages["joint"])


def test_constructor_arguments_can_be_replaced(stages: dict[str, Path]) -> None:
    loaded = load_stage(stages["vqvae"], quantizer_bypass=0.25, seed=7)
    assert (loaded.quantizer_bypass, loaded.seed) == (0.25, 7)


def test_codec_of_a_fine_tune_stage_is_loaded_from_init_from(images: Path, tmp_path: Path) -> None:
    codec = fixed_codec_weights(tmp_path / "codec.safetensors")
    folder = run({**settings(images, tmp_path, "app", "restoration", 1), "init_from": str(codec)})
    expected = checkpoint(folder)["state_dict"]
    loaded = load_stage(folder)
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    weights = read_codec(codec)
    assert torch.equal(loaded.model.decoder.last_layer, weights.model.decoder.last_layer)
    fixed_codec_weights(codec, seed=1)
    with pytest.raises(WeightsError, match=r"another codec than .*safetensors now holds; .*pass codec="):
        load_stage(folder)
    assert load_stage(folder, codec=weights).variant["fingerprint"] == weights.fingerprint


def renamed(stages: dict[str, Path], path: Path, *keys: str, target: str, **arguments: Any) -> Path:
    """Write stage I's checkpoint with another `_target_` in its settings."""
    content = copy.copy(checkpoint(stages["vqvae"]))
    node = content["glc"]["recipe"]["stage"]["module"]
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = {"_target_": target, **arguments}
    save_checkpoint(content, path)
    return path


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.remove", r"names os\.remove, which loading would run; .* pass trust='os'"),
        ("glc.io.atomic.write_text", r"names glc\.io\.atomic\.write_text, which loading would run"),
        ("glc.training.stages.base.random", "not a class that 'glc' defines"),
        ("glc.losses.nothing.Such", "cannot be imported"),
        ("torch.nn.init.zeros_", "not a class that 'torch' defines"),
        ("tests.training.own.Plain", "pass trust='tests'"),
    ],
)
def test_untrusted_targets_are_refused(
    stages: dict[str, Path], tmp_path: Path, target: str, message: str
) -> None:
    path = renamed(stages, tmp_path / "x.ckpt", "codebook", target=target)
    with pytest.raises(WeightsError, match=message):
        load_stage(path)


def test_trusted_package_is_loaded(stages: dict[str, Path], tmp_path: Path) -> None:
    path = renamed(stages, tmp_path / "x.ckpt", "codebook", target="tests.training.own.NoLoss", beta=0.5)
    assert load_stage(path, trust=["tests"]).codebook.beta == 0.5
