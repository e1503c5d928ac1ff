"""Encoder and decoder variants."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import glc
from glc.codec.weights.catalog import catalog
from glc.codec.weights.file import VariantLabel, read_label, read_weights
from glc.codec.weights.variants import read_variant, save_variant
from tests.codec.fixed_model import fixed_codec_weights, fixed_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec, another one, and an encoder and a decoder for the first whose weights were moved a little."""
    folder = tmp_path_factory.mktemp("parts")
    fixed_codec_weights(folder / "codec.safetensors")
    fixed_codec_weights(folder / "other.safetensors", seed=1)
    weights = read_weights(folder / "codec.safetensors")
    torch.manual_seed(0)
    for kind in ("encoder", "decoder"):
        state = getattr(weights.model, kind).state_dict()
        moved = {name: t + 0.05 * torch.randn(t.shape) * t.abs().mean() for name, t in state.items()}
        save_variant(
            folder / f"moved.{kind}.safetensors",
            kind,  # type: ignore[arg-type]
            moved,
            weights.description[kind],
            weights.fingerprint,
            {"stage": "test"},
        )
    return folder


@pytest.fixture(scope="module")
def codec(folder: Path) -> glc.Codec:
    return glc.load(folder / "codec.safetensors", "cpu")


def test_any_decoder_decodes_files_of_any_encoder(folder: Path, codec: glc.Codec) -> None:
    other = glc.load(folder / "codec.safetensors", "cpu", encoder=folder / "moved.encoder.safetensors")
    image = fixed_image(96, 64)
    data = other.compress(image)
    assert data != codec.compress(image)
    assert other.fingerprint == codec.fingerprint
    assert np.array_equal(np.asarray(codec.decompress(data)), np.asarray(other.decompress(data)))


def test_variant_decoder_renders_the_same_symbols_differently(folder: Path, codec: glc.Codec) -> None:
    other = glc.load(folder / "codec.safetensors", "cpu", decoder=folder / "moved.decoder.safetensors")
    data = codec.compress(fixed_image(96, 64))
    assert other.compress(fixed_image(96, 64)) == data
    assert codec.symbols(data) == other.symbols(data)
    assert not np.array_equal(np.asarray(codec.decompress(data)), np.asarray(other.decompress(data)))


def test_variants_are_listed_by_name_but_not_as_models(
    folder: Path, codec: glc.Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLC_MODELS", str(folder))
    assert {"codec", "other"} <= catalog().keys()
    assert not [name for name in catalog() if "moved" in name]
    assert catalog("encoder")["moved"] == folder / "moved.encoder.safetensors"
    data = glc.load("codec", "cpu", encoder="moved").compress(fixed_image(96, 64))
    assert data != codec.compress(fixed_image(96, 64))
    with pytest.raises(glc.WeightsError, match=r"no encoder 'mved'.*available: moved"):
        glc.load("codec", "cpu", encoder="mved")


def test_variant_of_another_codec_is_refused(folder: Path) -> None:
    with pytest.raises(glc.WeightsError, match=r"moved\.encoder\.safetensors: encoder for the codec"):
        glc.load(folder / "other.safetensors", "cpu", encoder=folder / "moved.encoder.safetensors")
    with pytest.raises(glc.WeightsError, match="is not an encoder but one decoder: use it with --decoder"):
        glc.load(folder / "codec.safetensors", "cpu", encoder=folder / "moved.decoder.safetensors")


def test_corrupt_variants_are_refused(folder: Path, rewrite: Callable[..., Path]) -> None:
    def change(tensors: dict[str, Tensor], _: object) -> None:
        next(iter(tensors.values())).view(-1)[0] += 1

    with pytest.raises(glc.WeightsError, match="corrupt"):
        read_variant(rewrite(change, folder / "moved.encoder.safetensors"), "encoder")


def test_label_describes_the_training(folder: Path, codec: glc.Codec) -> None:
    label = read_label(folder / "moved.decoder.safetensors")
    assert isinstance(label, VariantLabel)
    assert label.kind == "decoder"
    assert bytes.fromhex(label.fingerprint).startswith(codec.fingerprint)
    assert label.about == {"stage": "test"}
