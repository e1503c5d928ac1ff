"""The published layouts at full size, against what the published networks compute.

Needs a folder in the environment variable `GLC_REFERENCE`, with listings of names and shapes
(`*_state_dict.json`), stand-in weights as functions of them (`standin_weights.py`) and the results (`*.npz`);
3 GB of memory and 1.5 GB of disk. `pytest -s` prints the figures.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from glc.codec.convert.convert import convert, convert_to_official
from glc.codec.convert.read import open_source
from glc.codec.weights.file import read_weights
from tests.codec.convert.stand_ins import networks

REFERENCE = Path(os.environ.get("GLC_REFERENCE", ""))
pytestmark = pytest.mark.skipif("GLC_REFERENCE" not in os.environ, reason="GLC_REFERENCE names no folder")


@pytest.fixture(scope="module")
def stand_in_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("standin_weights", REFERENCE / "standin_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(stand_in_module: ModuleType, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Write the file of a layout, and delete it afterwards."""
    path = tmp_path / "source.pth"

    def write(layout: str) -> Path:
        listing = json.loads((REFERENCE / f"{layout}_state_dict.json").read_text())
        stand_in = stand_in_module.standin
        torch.save({name: torch.from_numpy(stand_in(name, tuple(s))) for name, s in listing.items()}, path)
        return path

    yield write
    for file in tmp_path.iterdir():
        file.unlink()


def error(found: Tensor, expected: np.ndarray) -> float:
    """Return the largest error, relative to the largest value."""
    return float(np.abs(found.numpy() - expected).max() / np.abs(expected).max())


@torch.no_grad()
def test_glc(source: Callable[[str], Path], stand_in_module: ModuleType, tmp_path: Path) -> None:
    path = source("glc_image")
    weights = tmp_path / "glc.safetensors"
    convert(path, weights)
    model, expected = read_weights(weights).model, np.load(REFERENCE / "glc_image_64x64.npz")
    x = torch.from_numpy(stand_in_module.image(64, 64))
    for rate_index in range(4):
        out = model(x, rate_index)
        errors = {"latent": error(out.latent, expected["latent"])}
        for name in ("y", "latent_hat", "x_hat", "scales"):
            errors[name] = error(getattr(out, name), expected[f"q{rate_index}/{name}"])
        equal = float((out.symbols.numpy().round() == expected[f"q{rate_index}/symbols"]).mean())
        bits = out.bits_y.item() / float(expected[f"q{rate_index}/bits_y"]) - 1
        print(
            f"\nglc q{rate_index}",
            {k: f"{v:.1e}" for k, v in errors.items()},
            f"symbols {equal:.4%} bits_y {bits:+.1e}",
        )
        assert max(errors.values()) < 1e-4
        assert (out.z_indices.numpy() == expected[f"q{rate_index}/z_indices"]).all()
        assert equal >= 0.999
        assert abs(bits) < 1e-3
        assert out.bits_z.item() == pytest.approx(float(expected[f"q{rate_index}/bits_z"]), rel=1e-6)
    latent = torch.from_numpy(expected["latent"])
    quantizer = networks(path, "quantizer")["quantizer"]
    assert (quantizer.encode(latent).numpy() == expected["vq_indices"]).all()

    del model
    convert_to_official(weights, tmp_path / "back.pth")
    theirs, back = (open_source(p).tensors for p in (path, tmp_path / "back.pth"))
    assert len(back) == 563
    assert all(torch.equal(value, theirs[name]) for name, value in back.items())


@torch.no_grad()
def test_the_code_predictor(source: Callable[[str], Path]) -> None:
    predictor = networks(source("glc_image"), "predictor")["predictor"]
    expected = np.load(REFERENCE / "glc_code_predictor_256x256.npz")
    logits = predictor(torch.from_numpy(expected["latent"])).flatten(1, 2)
    found = error(logits[:, :4], expected["logits_first4"])
    print(f"\ncode predictor logits {found:.1e}")
    assert found < 1e-4
    assert (logits.argmax(-1).numpy() == expected["argmax"]).all()


@pytest.mark.parametrize(("layout", "size"), [("taming_vqgan", (64, 64)), ("codeformer_vqgan", (64, 96))])
@torch.no_grad()
def test_vqgans(
    layout: str, size: tuple[int, int], source: Callable[[str], Path], stand_in_module: ModuleType
) -> None:
    expected = np.load(REFERENCE / f"{layout}_{size[0]}x{size[1]}.npz")
    made = networks(source(layout), "encoder", "decoder", "quantizer")
    latent = made["encoder"](torch.from_numpy(stand_in_module.image(*size)))
    quantized = made["quantizer"](latent)
    errors = error(latent, expected["latent"]), error(made["decoder"](quantized.quantized), expected["x_hat"])
    print(f"\n{layout} latent {errors[0]:.1e} x_hat {errors[1]:.1e}")
    assert max(errors) < 1e-4
    assert (quantized.indices.numpy() == expected["vq_indices"]).all()
