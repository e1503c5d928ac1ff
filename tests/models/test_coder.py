import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glc.models.coder import IndicesMapCoder, TransformCoder
from glc.models.context import QuadtreeContext
from glc.models.hyperprior import CategoricalHyperprior
from glc.models.transform import Rate

MakeCoder = Callable[..., TransformCoder]
Decode = Callable[[QuadtreeContext, Tensor, Tensor], Tensor]
IndicesMap = tuple[IndicesMapCoder, Tensor]

kinds = pytest.mark.parametrize("factorized", [False, True], ids=["categorical", "factorized"])


@kinds
def test_decoder_reconstructs_the_latent_from_symbols(
    make_coder: MakeCoder, decode: Decode, factorized: bool
) -> None:
    coder = make_coder(factorized)
    latent = torch.randn(2, 6, 8, 12)
    out = coder(latent, 1.5)
    prior = coder.hyper.synthesis(coder.hyper.decode(out.z_indices))
    y_hat = decode(coder.context, prior, out.symbols)
    torch.testing.assert_close(coder.synthesis(y_hat, 1.5), out.latent_hat, atol=1e-4, rtol=1e-4)
    assert out.latent_hat.shape == latent.shape
    assert out.symbols.abs().max() > 0


@kinds
def test_bits_are_sums_per_image(make_coder: MakeCoder, factorized: bool) -> None:
    coder = make_coder(factorized)
    latent = torch.randn(2, 6, 8, 8)
    out = coder(latent, 0)
    prior = coder.hyper.synthesis(coder.hyper(out.y).z_hat)
    torch.testing.assert_close(out.bits_y, coder.context(out.y, prior).bits.flatten(1).sum(1))
    torch.testing.assert_close(out.bits_z, coder.hyper(out.y).bits)
    assert (out.bits_y > 0).all()


@kinds
def test_decode_z_equals_decoding_zero_symbols(
    make_coder: MakeCoder, decode: Decode, factorized: bool
) -> None:
    coder = make_coder(factorized)
    out = coder(torch.randn(2, 6, 8, 4), 2)
    prior = coder.hyper.synthesis(coder.hyper.decode(out.z_indices))
    expected = coder.synthesis(decode(coder.context, prior, torch.zeros_like(out.symbols)), 2)
    alone = coder.decode_z(out.z_indices, 2)
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(alone, out.latent_hat)


def test_steps_and_scales_start_near_one(make_coder: MakeCoder) -> None:
    coder = make_coder()
    hyper = coder.hyper(torch.randn(2, 8, 8, 8))
    steps, scales, _, reduced = coder.context.split_prior(coder.hyper.synthesis(hyper.z_hat))
    later, _ = coder.context.predict(1, torch.randn_like(steps), reduced)
    for values in (steps, scales, later):
        assert 0.6 < values.mean() < 1.4


def test_higher_rates_start_with_finer_steps() -> None:
    hyper = CategoricalHyperprior(8, 16)
    coder = TransformCoder(6, hyper, QuadtreeContext(8, depth=1), num_rates=4)
    up, down = coder.analysis.scaler.scale, coder.synthesis.scaler.scale
    assert (up[1:] > up[:-1]).all()
    torch.testing.assert_close(up * down, torch.ones(4, 8))  # what g_a multiplies, g_s divides by
    latent = torch.randn(8, 6, 8, 8)
    bits = [float(coder(latent, rate_index).bits_y.detach().mean()) for rate_index in range(4)]
    assert bits == sorted(bits)


def test_autocast_leaves_the_entropy_model_at_full_precision(make_coder: MakeCoder) -> None:
    coder = make_coder()
    latent = torch.randn(1, 6, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = coder(latent, 0)
    assert {t.dtype for t in (out.y, out.z, out.scales, out.bits_y, out.latent_hat)} == {torch.float32}
    prior = coder.hyper.synthesis(coder.hyper(out.y).z_hat)
    expected = coder.context(out.y, prior)
    assert torch.equal(out.scales, expected.scales)
    assert torch.equal(out.symbols, expected.symbols)


@pytest.fixture
def indices_map() -> IndicesMap:
    coder, codebook = IndicesMapCoder(6, (3, 16, 64)), torch.randn(64, 6)
    coder.initialize(codebook, torch.Generator().manual_seed(0))
    return coder, codebook


def test_indices_map_codebooks_are_subsets_of_C(indices_map: IndicesMap) -> None:
    coder, codebook = indices_map
    for quantizer in coder.codebooks:
        assert (quantizer.embedding[:, None] == codebook).all(2).any(1).all()
        assert quantizer.embedding.requires_grad
        assert quantizer.initialized  # nothing places them anew
    assert torch.equal(coder.codebooks[2].embedding, codebook)


def test_indices_map_bits_and_distortion_per_rate(indices_map: IndicesMap) -> None:
    coder, _ = indices_map
    latent = torch.randn(3, 6, 5, 7)
    errors = []
    for rate_index, bits in enumerate((math.log2(3), 4, 6)):
        out = coder(latent, rate_index)
        torch.testing.assert_close(out.bits_y, torch.full((3,), 35.0 * bits))
        assert (out.bits_z == 0).all()
        assert out.symbols.shape == (3, 5, 7)
        vectors = latent.permute(0, 2, 3, 1).reshape(-1, 6)
        nearest = torch.cdist(vectors, coder.codebooks[rate_index].embedding).argmin(1).view(3, 5, 7)
        assert torch.equal(out.symbols, nearest)
        expected = coder.codebooks[rate_index].embedding[nearest].permute(0, 3, 1, 2)
        torch.testing.assert_close(out.latent_hat, expected)
        errors.append(float((out.latent_hat - latent).square().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_indices_map_takes_one_rate_per_image(indices_map: IndicesMap) -> None:
    coder, _ = indices_map
    latent = torch.randn(3, 6, 4, 4)
    out = coder(latent, torch.tensor([2, 0, 1]))
    torch.testing.assert_close(out.bits_y, 16 * torch.tensor([6.0, math.log2(3), 4.0]))
    for i, rate_index in enumerate((2, 0, 1)):
        torch.testing.assert_close(out.latent_hat[i : i + 1], coder(latent[i : i + 1], rate_index).latent_hat)


@pytest.mark.parametrize("rate_index", [0.5, 3, -1, torch.tensor([0.0, 1.5]), torch.tensor([0, 7])])
def test_indices_map_has_integer_rate_points_only(indices_map: IndicesMap, rate_index: Rate) -> None:
    with pytest.raises(ValueError, match="integers 0 to 2"):
        indices_map[0](torch.randn(2, 6, 2, 2), rate_index)
