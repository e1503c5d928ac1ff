"""Sizes of files before export: those of the files that the exported codec writes."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import glc
from glc.codec.weights.export import export
from tests.short_runs import checkpoint, figures, live_weights, run, settings, write_images

PIXELS = 192 * 192


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def train(images: Path, runs: Path, name: str, files: int, **more: Any) -> Path:
    values = settings(images, runs, name, "transform", steps=4) | {
        "data.val_crop": 192,
        "data.epoch_batches": 2,  # so that training goes on after a validation
        "init_from": "none",
        "callbacks.ema.decay": 0.5,
        "stage.validate_files": files,
    }
    return run({**values, **more})


def test_validation_measures_the_files_of_the_exported_codec_and_leaves_training_as_it_is(
    images: Path, tmp_path: Path
) -> None:
    measured, plain = (train(images, tmp_path, name, files) for name, files in (("on", 2), ("off", 0)))
    rows = [row for row in figures(measured) if "val/file_bpp/0" in row]
    assert len(rows) == 2  # one per validation
    # Validation uses the EMA weights, and so does the export.
    export(measured / "checkpoints" / "last.ckpt", tmp_path / "codec.safetensors")
    codec = glc.load(tmp_path / "codec.safetensors", "cpu")
    for k in range(4):
        files = [codec.compress(images / f"{i}.png", 100 * k / 3) for i in range(2)]
        assert rows[-1][f"val/file_bpp/{k}"] == pytest.approx(4 * sum(map(len, files)) / PIXELS, rel=1e-6)
    # Nothing else differs.
    without = figures(plain)
    timed = ("train/images_per_second",)
    for row, other in zip(figures(measured), without, strict=True):
        kept = {key: v for key, v in row.items() if "file_bpp" not in key and key not in timed}
        assert kept == {key: v for key, v in other.items() if key not in timed}
    one, two = checkpoint(measured), checkpoint(plain)
    for made, expected in ((one["state_dict"], two["state_dict"]), (live_weights(one), live_weights(two))):
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[key], expected[key]) for key in made)
    assert not any("file_bpp" in key for row in without for key in row)


@pytest.mark.parametrize("variant", ["factorized", "indices_map"])
def test_every_coder_has_file_sizes(images: Path, tmp_path: Path, variant: str) -> None:
    folder = train(images, tmp_path, variant, 1, **{"model/variants": f"[{variant}]", "trainer.max_steps": 2})
    export(folder / "checkpoints" / "last.ckpt", tmp_path / "codec.safetensors")
    codec = glc.load(tmp_path / "codec.safetensors", "cpu")
    row = [row for row in figures(folder) if "val/file_bpp/0" in row][-1]
    sizes = [8 * len(codec.compress(images / "0.png", 100 * k / 3)) / PIXELS for k in range(4)]
    assert [row[f"val/file_bpp/{k}"] for k in range(4)] == pytest.approx(sizes, rel=1e-6)


def test_a_coder_without_files_is_reported_and_training_continues(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def inexact(*_: Any) -> None:
        raise glc.errors.InexactError("hyper.0: too many products")

    monkeypatch.setattr("glc.training.stages.codec.file_sizes", inexact)
    with caplog.at_level(logging.WARNING):
        folder = train(images, tmp_path, "inexact", 1)
    assert checkpoint(folder)["global_step"] == 4
    assert caplog.text.count("val/file_bpp: not measured: hyper.0: too many products") == 1


def test_latents_that_are_not_finite_have_no_size(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_finite(*_: Any) -> None:
        raise ValueError("the transform of the image is not finite")

    monkeypatch.setattr("glc.training.stages.codec.file_sizes", not_finite)
    rows = figures(train(images, tmp_path, "nan", 1))
    assert all(math.isnan(row["val/file_bpp/3"]) for row in rows if "val/loss" in row)
