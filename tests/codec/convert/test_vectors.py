"""Converted networks compute the same as the third-party code."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from glc.codec.convert.convert import convert
from glc.codec.convert.detect import recognize
from glc.codec.convert.read import open_source
from glc.codec.weights.file import read_weights
from glc.layers.blocks import WindowAttention
from tests.codec.convert.stand_ins import (
    IMAGE,
    WINDOW,
    digest,
    image,
    layouts,
    listing,
    networks,
    sample,
    stand_ins,
)

EXPECTED = json.loads((Path(__file__).parent / "expected.json").read_text())


def close(found: Tensor, expected: list[float]) -> bool:
    """Whether a map's samples are the expected ones, to 1e-4 of its root mean square."""
    size = expected[-1]
    return all(abs(a - b) < 1e-4 * size for a, b in zip(sample(found), expected, strict=True))


def use_small_windows(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, WindowAttention):
            module.window = WINDOW


@pytest.mark.parametrize("kind", ["glc", "taming", "codeformer"])
def test_names_and_shapes_match_the_third_party_files(kind: str) -> None:
    assert listing(stand_ins(layouts()[kind])) == EXPECTED[kind]["listing"]


@torch.no_grad()
def test_converted_codec_equals_the_authors_code(files: dict[str, Path], tmp_path: Path) -> None:
    convert(files["glc"], tmp_path / "glc.safetensors")
    model = read_weights(tmp_path / "glc.safetensors").model
    use_small_windows(model)
    expected = EXPECTED["glc"]
    assert len(expected["rates"]) == model.num_rates
    for rate_index, values in enumerate(expected["rates"]):
        out = model(image(*IMAGE), rate_index)
        assert close(out.latent, expected["latent"])
        for name in ("y", "scales", "latent_hat", "x_hat"):
            assert close(getattr(out, name), values[name]), (rate_index, name)
        assert out.z_indices.flatten().tolist() == values["z_indices"]
        assert int((out.symbols != 0).sum()) == values["nonzero"]
        assert digest(out.symbols.round().long()) == values["symbols"]
        assert out.bits_y.item() == pytest.approx(values["bits_y"], rel=1e-5)
        assert out.bits_z.item() == pytest.approx(values["bits_z"], rel=1e-6)


@torch.no_grad()
def test_codebook_and_code_predictors_equal_the_authors_code(files: dict[str, Path]) -> None:
    made = networks(files["glc"])
    use_small_windows(made["encoder"])
    expected = EXPECTED["glc"]
    assert digest(made["quantizer"].encode(made["encoder"](image(*IMAGE)))) == expected["indices"]
    latent = made["encoder"](image(64, 64))
    for name in ("predictor", "pixel_predictor"):
        logits = made[name](latent).flatten(1, 2)
        assert close(logits, expected[name]["logits"]), name
        assert digest(logits.argmax(-1)) == expected[name]["argmax"]


@pytest.mark.parametrize("kind", ["taming", "codeformer"])
@torch.no_grad()
def test_converted_vqgan_equals_the_authors_code(kind: str, files: dict[str, Path]) -> None:
    made, expected = networks(files[kind]), EXPECTED[kind]
    latent = made["encoder"](image(*IMAGE))
    assert close(latent, expected["latent"])
    quantized = made["quantizer"](latent)
    assert digest(quantized.indices) == expected["indices"]
    assert close(made["decoder"](quantized.quantized), expected["x_hat"])
    assert made["quantizer"].initialized  # else training would place the codes anew


def test_single_networks_equal_those_of_all(files: dict[str, Path]) -> None:
    published = recognize(open_source(files["glc"]))
    everything = published.states()
    for name in everything:
        alone = published.states([name])
        assert alone.keys() == {name}
        assert alone[name].keys() == everything[name].keys()
        assert all(torch.equal(value, everything[name][key]) for key, value in alone[name].items())
