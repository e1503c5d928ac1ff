"""Runs with finite scalar quantisation of C and C_h: three stages, export, files, warm start."""

from pathlib import Path

import numpy as np
import pytest
import torch

import glc
from glc.codec.weights.export import export, export_training_weights
from glc.codec.weights.file import read_weights
from tests.codec import reference_decoder as reference
from tests.codec.fixed_model import fixed_image
from tests.codec.reference_weights import Weights
from tests.short_runs import STAGES, checkpoint, figures, run, settings

FSQ = {"model/variants": "[fsq,fsq_hyper]", "stage.validate_files": 2}
LEVELS = [4, 4, 4, 4, 4]


@pytest.fixture(scope="module")
def folders(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    runs = tmp_path_factory.mktemp("fsq")
    made: dict[str, Path] = {}
    for stage in STAGES:
        values = {**settings(images, runs, "fsq", stage, 2), **FSQ}
        if stage == "vqvae":
            del values["stage.validate_files"]
        made[stage] = run(values)
    return made


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def exported(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "codec.safetensors"
    export(last(folders["joint"]), path)
    return path


def test_there_is_no_codebook_loss_and_codes_are_predicted(folders: dict[str, Path]) -> None:
    first, last = figures(folders["vqvae"]), figures(folders["joint"])
    assert {row["train/codebook"] for row in first if "train/codebook" in row} == {0.0}
    assert any(0 < row.get("train/codebook_usage", 0) <= 1 for row in first)
    assert not [key for row in last for key in row if key.endswith("train/codebook")]
    assert any(row.get("train/hyper_codebook_count", 0) >= 1 for row in last)
    # 1,024 codewords, of which an untrained predictor knows little.
    (entropy, *_) = [row["train/code_ce"] for row in last if "train/code_ce" in row]
    assert 0.5 * np.log(1024) < entropy < 2 * np.log(1024)


def test_the_grid_is_the_same_in_all_stages(folders: dict[str, Path]) -> None:
    grids = [checkpoint(folders["vqvae"])["state_dict"]["autoencoder.quantizer.embedding"]]
    for stage in ("transform", "joint"):
        state = checkpoint(folders[stage])["state_dict"]
        grids += [state["quantizer.embedding"], state["model.coder.hyper.quantizer.embedding"][:, :5]]
        assert not [key for key in state if "quantizer.projection" in key]
    assert all(torch.equal(grid, grids[0]) for grid in grids)
    assert sorted(grids[0].unique().tolist()) == pytest.approx([-1, -1 / 3, 1 / 3, 1])


@pytest.mark.parametrize("half", [False, True])
def test_files_decode_to_the_same_integers_everywhere(
    folders: dict[str, Path], tmp_path: Path, half: bool
) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "codec.safetensors"
    export(last(folders["joint"]), path, half=half)
    codec, without_torch = (glc.load(path, backend=backend) for backend in ("torch", "onnx"))
    image = fixed_image(70, 130)
    data = codec.compress(image)
    symbols, found = codec.symbols(data), reference.decode(data, Weights.read(path))
    np.testing.assert_array_equal(symbols.z[0].numpy(), found.z)
    np.testing.assert_array_equal(symbols.y[0].numpy(), found.y)
    np.testing.assert_array_equal(without_torch.symbols(data).z, symbols.z)
    np.testing.assert_array_equal(without_torch.symbols(data).y, symbols.y)
    np.testing.assert_array_equal(without_torch.symbols(without_torch.compress(image)).z, symbols.z)


@torch.no_grad()
def test_an_exported_codec_continues_in_training(
    folders: dict[str, Path], exported: Path, images: Path, tmp_path: Path
) -> None:
    description = read_weights(exported).description
    assert description["coder"]["hyper"]["levels"] == LEVELS
    assert description["encoder"]["bounded"] is True
    training = tmp_path / "training.safetensors"
    assert "C" in export_training_weights(last(folders["joint"]), training)
    values = {**settings(images, tmp_path, "again", "joint", 1), **FSQ}
    folder = run({**values, "init_from": f"[{exported},{training}]", "trainer.max_steps": 1})
    state, before = checkpoint(folder)["state_dict"], checkpoint(folders["joint"])["state_dict"]
    for name in ("quantizer.embedding", "model.coder.hyper.quantizer.embedding"):
        assert torch.equal(state[name], before[name])
