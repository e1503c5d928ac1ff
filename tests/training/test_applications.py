"""The applications: an encoder or decoder variant trained for a finished codec."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

import glc
from glc.codec.weights.export import export, export_training_weights, read_codec
from glc.codec.weights.labels import read_label
from glc.errors import WrongWeightsError
from glc.launch.start import UsageError, resolve_start
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.codec.weights.test_export import command
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


@pytest.fixture(scope="module")
def polisher(photos: Path, codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = options(photos, tmp_path_factory.mktemp("polish"), codec, "polish", steps=30)
    more = {"stage.adversarial_weight": 0.01, "stage.optimizer.lr": 2e-3, "callbacks.ema.decay": 0.8}
    return run({**values, **more, "validate_first": "true", "trainer.log_every_n_steps": 10})


def test_polish_trains_the_decoder_on_coded_latents(polisher: Path, codec: Path) -> None:
    saved = checkpoint(polisher)
    assert {key.split(".")[0] for key in saved["state_dict"]} == {"decoder", "adversarial"}
    assert saved["glc"]["part"]["fingerprint"] == read_codec(codec).fingerprint
    assert len(saved["optimizer_states"]) == 2
    rows = figures(polisher)
    assert all(finite(row) for row in rows)
    assert {"train/l1", "train/logits_real", "train/adversarial_weight"} <= rows[-1].keys() | rows[-2].keys()
    before, after = (row for row in rows if "val/loss" in row)
    for k in range(4):
        assert after[f"val/l1/{k}"] < before[f"val/l1/{k}"]
        assert after[f"val/bpp/{k}"] == before[f"val/bpp/{k}"]
    assert after["val/loss"] == pytest.approx(sum(after[f"val/loss/{k}"] for k in range(4)) / 4, rel=1e-5)


def test_polish_changes_no_byte_and_no_weight_of_the_codec(
    polisher: Path, codec: Path, tmp_path: Path
) -> None:
    last, image = polisher / "checkpoints" / "last.ckpt", fixed_image(64, 96)
    old = glc.load(codec, "cpu")
    data = old.compress(image)
    export(last, tmp_path / "decoder.safetensors")
    assert read_label(tmp_path / "decoder.safetensors").about["stage"] == "polish"
    polished = glc.load(codec, "cpu", decoder=tmp_path / "decoder.safetensors")
    assert polished.compress(image) == data
    decoded = np.asarray(polished.decompress(data))
    assert not np.array_equal(decoded, np.asarray(old.decompress(data)))

    # A complete codec: the same symbols and tables; its D is part of its fingerprint, which its files name.
    words = ("export", polisher, tmp_path / "new.safetensors", "--codec", codec)
    assert command(*words).exit_code == 0
    new = glc.load(tmp_path / "new.safetensors", "cpu")
    own = new.compress(image)
    prefixes = [
        bytes.fromhex(read_codec(path).fingerprint[:8]) for path in (codec, tmp_path / "new.safetensors")
    ]
    assert data.count(prefixes[0]) == 1
    assert own[:-4] == data[:-4].replace(*prefixes)  # the checksum covers the name
    assert np.array_equal(np.asarray(new.decompress(own)), decoded)
    with pytest.raises(WrongWeightsError):
        new.decompress(data)
    kept, changed = (read_codec(path).model.state_dict() for path in (codec, tmp_path / "new.safetensors"))
    assert {name.split(".")[0] for name in kept if not torch.equal(kept[name], changed[name])} == {"decoder"}


def test_codec_of_an_export_must_be_the_variant_s(
    polisher: Path, stages: dict[str, Path], codec: Path, tmp_path: Path
) -> None:
    other, out = fixed_codec_weights(tmp_path / "other.safetensors", seed=1), tmp_path / "out.safetensors"
    result = command("export", polisher, out, "--codec", other)
    assert result.exit_code == 1
    assert "decoder for the codec" in result.stderr
    result = command("export", stages["joint"], out, "--codec", codec)
    assert result.exit_code == 1
    assert "holds a complete codec" in result.stderr
    result = command("export", polisher, out, "--codec", codec, "--training")
    assert result.exit_code == 2
    assert not out.exists()


def test_polish_starts_with_the_discriminator_of_stage_three(
    stages: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    wanted = checkpoint(stages["joint"])["state_dict"]
    export_training_weights(stages["joint"] / "checkpoints" / "last.ckpt", tmp_path / "training.safetensors")
    export(stages["joint"] / "checkpoints" / "last.ckpt", tmp_path / "codec.safetensors")
    for given in (
        {"init_from": stages["joint"]},
        {
            "init_from": tmp_path / "codec.safetensors",
            "stage.discriminator_from": tmp_path / "training.safetensors",
        },
    ):
        start = resolve_start(compose({**settings(photos, tmp_path, "one", "polish"), **given}))
        assert start.codec is not None
        assert start.discriminator is not None
        prefix = "adversarial.discriminator."
        found = {
            name: value for name, value in start.discriminator.tensors.items() if name.startswith(prefix)
        }
        assert found.keys() == {name for name in wanted if name.startswith(prefix)}
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    plain = {**settings(photos, tmp_path, "one", "polish"), "init_from": tmp_path / "codec.safetensors"}
    assert resolve_start(compose(plain)).discriminator is None
    with pytest.raises(UsageError, match=r"give one file; stage\.discriminator_from= takes another"):
        resolve_start(compose({**plain, "init_from": "[small,training.safetensors]"}))


def test_polish_needs_no_gradient_before_the_decoder(photos: Path, codec: Path, tmp_path: Path) -> None:
    cfg = compose(options(photos, tmp_path, codec, "polish"))
    stage = instantiate(cfg.stage.module, _partial_=True, _convert_="all")(codec=read_codec(codec))
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rates = torch.arange(4)
    latent_hat, bits = stage.coded(x, rates)
    assert not latent_hat.requires_grad
    assert bits.tolist() == sorted(bits.tolist())
    with torch.no_grad():
        singly = [stage.model(x[k : k + 1], k) for k in range(4)]
    torch.testing.assert_close(
        latent_hat, torch.cat([out.latent_hat for out in singly]), rtol=1e-3, atol=1e-3
    )
    names = {name.split(".")[0] for name, p in stage.named_parameters() if p.requires_grad}
    assert names == {"decoder", "adversarial"}
