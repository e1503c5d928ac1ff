"""The integer networks in NumPy equal those in PyTorch bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch

from glc.codec.entropy import integer_kernels
from glc.codec.onnx.integer_nets import IntegerNetworks, depth_of
from glc.codec.onnx.weights import read_arrays
from glc.errors import InexactError
from tests.codec.variants import Variants


@pytest.fixture(params=["kernels", "float64"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "float64":
        monkeypatch.setattr(integer_kernels, "available", lambda: False)
    elif not integer_kernels.available():
        pytest.skip("no C compiler, a processor without AVX2, or kernels disabled")


def networks_of(variants: Variants, scale: float = 1) -> tuple[IntegerNetworks, Any]:
    weights = read_arrays(variants.weights("categorical"))
    tensors = {name: array * np.float32(scale) for name, array in weights.tensors.items()}
    return IntegerNetworks(tensors, depth_of(weights.description["coder"]), 2), variants.codec("categorical")


@pytest.mark.usefixtures("way")
@torch.inference_mode()
@pytest.mark.parametrize("size", [1.0, 300.0, 30000.0])
def test_networks_equal_pytorch(variants: Variants, size: float) -> None:
    """Also where activations saturate."""
    networks, codec = networks_of(variants)
    rng = np.random.default_rng(0)
    z_hat = rng.standard_normal((2, 16, 3, 4)) * size
    prior = networks.prior(z_hat)
    latent_codec = codec.latent_codec
    assert np.array_equal(prior, latent_codec.synthesis(torch.from_numpy(z_hat)))
    for found, expected in zip(
        networks.split(prior), latent_codec.context.split_prior(torch.from_numpy(prior)), strict=True
    ):
        assert np.array_equal(found, expected)
    y_hat, reduced = (rng.standard_normal((2, 16, 12, 16)) * size for _ in range(2))
    for k in (1, 2, 3):
        given = (torch.from_numpy(y_hat), torch.from_numpy(reduced))
        for found, expected in zip(
            networks.predict(k, y_hat, reduced), latent_codec.context.predict(k, *given), strict=True
        ):
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("value", [1e9, np.nan])
def test_weights_whose_sums_are_not_exact_are_refused(variants: Variants, value: float) -> None:
    weights = read_arrays(variants.weights("categorical"))
    tensors = {name: array.copy() for name, array in weights.tensors.items()}
    tensors["coder.context.reduction.weight"][0, 0] = value
    with pytest.raises(InexactError, match=r"coder\.context\.reduction has weights"):
        IntegerNetworks(tensors, 1, 1)
