"""The applications: an encoder or decoder variant trained for a finished codec."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

import glc
from glc.codec.weights.export import export, read_codec
from glc.codec.weights.labels import read_label
from glc.launch.start import UsageError
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.short_runs import (
    checkpoint,
    compose,
    figures,
    finite,
    run,
    settings,
    stand_in_weights,
    write_images,
)
from tests.training.test_stages import all_plain


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixed_codec_weights(tmp_path_factory.mktemp("codec") / "codec.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos"), count=3, side=96)


def options(photos: Path, runs: Path, codec: Path, stage: str, steps: int = 4) -> dict[str, Any]:
    return {**settings(photos, runs, "app", stage, steps), "init_from": str(codec)}


@pytest.fixture(scope="module")
def denoiser(photos: Path, codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = options(photos, tmp_path_factory.mktemp("runs"), codec, "restoration", steps=12)
    return run(
        {**values, "degradation.sigma": 60, "stage.optimizer.lr": 1e-3, "trainer.log_every_n_steps": 4}
    )


def test_restoration_checkpoint_holds_only_the_new_encoder(denoiser: Path, codec: Path) -> None:
    saved = checkpoint(denoiser)
    own = read_codec(codec).model.encoder.state_dict()
    assert saved["state_dict"].keys() == {f"encoder.{name}" for name in own}
    assert not any(torch.equal(saved["state_dict"][f"encoder.{k}"], v) for k, v in own.items())
    assert all_plain(saved["glc"])
    assert saved["glc"]["part"]["fingerprint"] == read_codec(codec).fingerprint
    rows = figures(denoiser)
    assert all(finite(row) for row in rows)
    last = [row for row in rows if "val/loss" in row][-1]
    assert last["val/latent_mse"] < last["val/latent_mse_plain"]
    assert {f"val/bpp{kind}/{k}" for k in range(4) for kind in ("", "_plain")} <= last.keys()


def test_restoration_encoder_writes_files_that_the_codec_decodes(
    denoiser: Path, codec: Path, tmp_path: Path
) -> None:
    for half in (False, True):
        export(denoiser / "checkpoints" / "last.ckpt", tmp_path / "restore.safetensors", half)
        label = read_label(tmp_path / "restore.safetensors")
        assert (label.kind, label.about["stage"]) == ("encoder", "restoration")
        assert label.about["degradation"]["sigma"] == 60
        restoring = glc.load(codec, "cpu", encoder=tmp_path / "restore.safetensors")
        image = fixed_image(64, 96)
        data = restoring.compress(image)
        plain = glc.load(codec, "cpu")
        assert data != plain.compress(image)
        assert np.array_equal(np.asarray(plain.decompress(data)), np.asarray(restoring.decompress(data)))
    sizes = [file.stat().st_size for file in (tmp_path / "restore.safetensors", codec)]
    assert sizes[0] < sizes[1] / 3


def test_validation_degradation_is_repeatable(photos: Path, codec: Path, tmp_path: Path) -> None:
    cfg = compose(options(photos, tmp_path, codec, "restoration"))
    stage = instantiate(cfg.stage.module, _partial_=True)(codec=read_codec(codec))
    x = torch.zeros(1, 3, 32, 32)
    seen = [stage.degradation(x, stage.fixed_generator(number)) for number in (0, 0, 1)]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not any(p.requires_grad for p in stage.model.parameters())
    assert all(p.requires_grad for p in stage.encoder.parameters())


def test_resuming_with_another_codec_is_refused(
    denoiser: Path, photos: Path, codec: Path, tmp_path: Path
) -> None:
    other = fixed_codec_weights(tmp_path / "other.safetensors", seed=1)
    values = options(photos, tmp_path, other, "restoration")
    with pytest.raises(UsageError, match=r"was trained for the codec .* set init_from= to that codec"):
        run({**values, "resume": str(denoiser / "checkpoints" / "last.ckpt")})


def test_missing_codec_message_names_the_fix(photos: Path, tmp_path: Path) -> None:
    values = settings(photos, tmp_path, "none", "restoration")
    with pytest.raises(UsageError, match=r"stage=restoration starts from stage=joint.*init_from="):
        run(values)
    with pytest.raises(UsageError, match=r"init_from=CODEC\.safetensors"):
        run({**values, "init_from": "none"})


def test_checkpoint_loads_as_its_exported_codec(stages: dict[str, Path], tmp_path: Path) -> None:
    export(stages["joint"] / "checkpoints" / "last.ckpt", tmp_path / "codec.safetensors")
    assert read_codec(stages["joint"]).fingerprint == read_codec(tmp_path / "codec.safetensors").fingerprint
    image = Image.fromarray(fixed_image(64, 64))
    expected = glc.Codec(read_codec(stages["joint"]), "cpu").compress(image)
    last = stages["joint"] / "checkpoints" / "last.ckpt"
    for source in (tmp_path / "codec.safetensors", stages["joint"], last):
        assert glc.load(source, "cpu").compress(image) == expected


@pytest.fixture(scope="module")
def stylizer(photos: Path, codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("style")
    rows = np.arange(80)[:, None] + np.arange(100)
    stripes = np.stack([(rows // 6 % 2) * 220, (rows // 9 % 2) * 90, 255 - (rows // 6 % 2) * 220], -1)
    Image.fromarray(stripes.astype(np.uint8)).save(folder / "stripes.png")
    more = {
        "perceptual.required": "true",
        "perceptual.net": "squeeze",
        "perceptual.weights_dir": str(stand_in_weights(folder / "weights")),
        "stage.style": str(folder / "stripes.png"),
        "stage.style_size": 64,
        "stage.optimizer.lr": 3e-3,
        "trainer.log_every_n_steps": 4,
    }
    return run({**options(photos, folder, codec, "stylization", steps=12), **more})


def test_stylization_decoder_renders_the_same_files_in_the_style(
    stylizer: Path, codec: Path, tmp_path: Path
) -> None:
    saved = checkpoint(stylizer)
    assert {key.split(".")[0] for key in saved["state_dict"]} == {"decoder"}
    rows = [row for row in figures(stylizer) if "val/loss" in row]
    assert all(finite(row) for row in rows)
    assert rows[-1]["val/style"] < rows[-1]["val/style_plain"]

    export(stylizer / "checkpoints" / "last.ckpt", tmp_path / "style.safetensors")
    label = read_label(tmp_path / "style.safetensors")
    assert (label.kind, label.about["style"]) == ("decoder", "stripes.png")
    styled = glc.load(codec, "cpu", decoder=tmp_path / "style.safetensors")
    data = glc.load(codec, "cpu").compress(fixed_image(64, 96))
    assert styled.compress(fixed_image(64, 96)) == data
    assert not np.array_equal(
        np.asarray(styled.decompress(data)), np.asarray(glc.load(codec, "cpu").decompress(data))
    )


def test_unreadable_style_image_is_named(photos: Path, codec: Path, tmp_path: Path) -> None:
    values = {
        **options(photos, tmp_path, codec, "stylization"),
        "stage.style": "none.png",
        "perceptual.net": "squeeze",
        "perceptual.weights_dir": str(stand_in_weights(tmp_path / "weights")),
    }
    with pytest.raises(UsageError, match=r"none\.png: no such file"):
        run(values)
    with pytest.raises(UsageError, match=r"stage\.style_size=0: not valid; give an integer of at least 64"):
        run({**values, "stage.style_size": 0})
    with pytest.raises(UsageError, match=r"stage\.style"):
        run({key: value for key, value in values.items() if key != "stage.style"})
