"""stage=gate: identity at the start, training, export to an exact codec."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

import glc
from glc.codec.codec import Codec
from glc.codec.weights.export import export, read_codec
from glc.errors import WeightsError
from glc.launch.run_summary import networks
from tests.codec import reference_decoder as reference
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.codec.reference_weights import Weights
from tests.short_runs import checkpoint, compose, figures, finite, run, settings, write_images


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixed_codec_weights(tmp_path_factory.mktemp("codec") / "codec.safetensors", z="rates")


@pytest.fixture(scope="module")
def trained(codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    photos = write_images(folder / "photos", count=3, side=96)
    values = settings(photos, folder / "runs", "gate", "gate", steps=8)
    return run({**values, "init_from": str(codec), "stage.optimizer.lr": 1e-2, "validate_first": "true"})


def gate_stage(codec: Path, tmp_path: Path, **more: object) -> torch.nn.Module:
    cfg = compose({**settings(tmp_path, tmp_path, "gate", "gate"), "init_from": str(codec), **more})
    return instantiate(cfg.stage.module, _partial_=True)(codec=read_codec(codec))


def test_a_new_gate_is_the_identity(codec: Path, tmp_path: Path) -> None:
    stage = gate_stage(codec, tmp_path)
    assert [name for name, p in stage.named_parameters() if p.requires_grad] == [
        f"gate.{name}" for name, _ in stage.gate.named_parameters()
    ]
    assert networks(stage).startswith("trained: gate ")
    assert "gate" not in networks(stage).partition("not trained: ")[2]
    plain = read_codec(codec).model.coder
    latent = torch.randn(2, plain.analysis.head[0][0].mix.in_channels, 8, 12)
    with torch.no_grad():
        for rate in (0, 1.25, torch.tensor([0.5, 3.0])):
            ours, theirs = stage.model.coder(latent, rate), plain(latent, rate)
            assert bool((ours.rho == 1).all())
            assert torch.equal(ours.symbols, theirs.symbols)
            assert torch.equal(ours.latent_hat, theirs.latent_hat)
            assert torch.equal(ours.bits, theirs.bits)


def test_an_untrained_gate_writes_the_payloads_of_the_codec_without_it(codec: Path, tmp_path: Path) -> None:
    weights = read_codec(codec)
    stage = gate_stage(codec, tmp_path)
    gated = Codec(replace(weights, model=stage.model, fingerprint="5a" * 32))
    plain = glc.load(codec, "cpu")
    for quality in (0, 41.7, 100):
        before, after = (each.compress(fixed_image(67, 130), quality) for each in (plain, gated))
        assert after[8:-4] == before[8:-4]  # all but fingerprint and checksum


def test_training_moves_rho_to_the_target_and_changes_nothing_else(trained: Path, codec: Path) -> None:
    saved = checkpoint(trained)
    assert all(name.startswith("gate.") for name in saved["state_dict"])
    rows = [row for row in figures(trained) if "val/loss" in row]
    assert all(finite(row) for row in figures(trained))
    for k in range(4):
        first, last = rows[0][f"val/rho_mean/{k}"], rows[-1][f"val/rho_mean/{k}"]
        assert first == 1
        assert abs(last - 1.16) < 0.16
        assert last > 1
        assert rows[-1][f"val/bpp/{k}"] < rows[0][f"val/bpp/{k}"]


def test_exported_gate_is_exact_in_every_decoder(trained: Path, codec: Path, tmp_path: Path) -> None:
    out = tmp_path / "gated.safetensors"
    export(trained / "checkpoints" / "last.ckpt", out)
    gated, plain = glc.load(out, "cpu"), glc.load(codec, "cpu")
    assert gated.weights.tables == plain.weights.tables
    again = tmp_path / "again.safetensors"
    export(trained / "checkpoints" / "last.ckpt", again, codec=codec)
    assert glc.load(again, "cpu").weights.fingerprint == gated.weights.fingerprint
    assert gated.weights.fingerprint == read_codec(trained).fingerprint != plain.weights.fingerprint
    image, onnx, weights = fixed_image(67, 130), glc.load(out, backend="onnx"), Weights.read(out)
    for quality in (0, 41.7, 100):
        data = gated.compress(image, quality)
        symbols, expected = gated.symbols(data), reference.decode(data, weights)
        np.testing.assert_array_equal(symbols.y[0].numpy(), expected.y)
        np.testing.assert_array_equal(symbols.z[0].numpy(), expected.z)
        assert onnx.symbols(data) == symbols
        assert len(data) < len(plain.compress(image, quality))
        before = torch.get_num_threads()
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert gated.symbols(data) == symbols
                assert gated.from_symbols(symbols, (67, 130), gated.rate_index(quality)) == data
        finally:
            torch.set_num_threads(before)


def test_a_gate_without_its_codec_is_refused_with_the_fix(trained: Path, codec: Path, tmp_path: Path) -> None:
    saved = checkpoint(trained)
    saved["glc"]["part"]["fingerprint"] = "0" * 64
    torch.save(saved, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match=r"was trained for another codec than .*--codec FILE"):
        export(tmp_path / "other.ckpt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_settings_that_cannot_be_used_are_refused(codec: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"stage\.target: rho is at least 1, got 0\.5"):
        gate_stage(codec, tmp_path, **{"stage.target": 0.5})
    maps = fixed_codec_weights(tmp_path / "maps.safetensors", coder="indices_map")
    with pytest.raises(Exception, match=r"init_from: .* has no TransformCoder with a QuadtreeContext"):
        gate_stage(maps, tmp_path)


def test_training_goes_on_from_a_gated_codec(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "gated.safetensors"
    export(trained / "checkpoints" / "last.ckpt", out)
    stage = gate_stage(out, tmp_path)
    own = read_codec(out).model.coder.gate.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in stage.gate.state_dict().items())
