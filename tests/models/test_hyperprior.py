import math

import pytest
import torch
from torch import nn

from glc.models.entropy import FactorizedDensity
from glc.models.hyperprior import HYPER_DOWNSAMPLING, CategoricalHyperprior, FactorizedHyperprior


def categorical(codes: int = 16, projected: bool = False) -> CategoricalHyperprior:
    module = CategoricalHyperprior(8, codes, projected)
    if not projected:
        nn.init.normal_(module.quantizer.embedding, std=0.3)
    return module


def finite() -> CategoricalHyperprior:
    return CategoricalHyperprior(8, 36, normalize=True, levels=[4, 3, 3])


def factorized() -> FactorizedHyperprior:
    module = FactorizedHyperprior(8)
    last = module.analysis[-1]
    assert isinstance(last, nn.Conv2d)
    nn.init.normal_(last.weight)  # fresh weights round all of z to zero
    return module


@pytest.mark.parametrize("make", [categorical, lambda: categorical(projected=True), finite, factorized])
@pytest.mark.parametrize("size", [(4, 4), (12, 8)])
def test_symbols_decode_to_z_hat(make, size: tuple[int, int]) -> None:
    module = make()
    small = (size[0] // HYPER_DOWNSAMPLING, size[1] // HYPER_DOWNSAMPLING)
    out = module(3 * torch.randn(6, 8, *size))
    assert out.z_hat.shape == (6, 8, *small)
    assert out.z.shape[2:] == small
    assert out.indices.dtype == torch.int64
    assert out.indices.unique().numel() > 1
    decoded = module.decode(out.indices)
    torch.testing.assert_close(decoded, out.z_hat)
    assert module.synthesis(decoded).shape == (6, 24, *size)
    assert out.bits.shape == (6,)


@pytest.mark.parametrize("noise", [False, True])
def test_categorical_sends_the_nearest_codeword_in_log2_of_the_codebook_size_bits(noise: bool) -> None:
    module = categorical(codes=24)
    out = module(torch.randn(2, 8, 8, 12), noise)
    torch.testing.assert_close(out.bits, torch.full((2,), 2 * 3 * math.log2(24)))
    assert out.codes is not None
    vectors = out.z.permute(0, 2, 3, 1).reshape(-1, 8)
    nearest = torch.cdist(vectors, module.quantizer.codebook()).argmin(1)
    assert torch.equal(out.indices, nearest.view(2, 2, 3))


def test_factorized_bits_use_rounded_or_noisy_z() -> None:
    module = factorized()
    assert isinstance(module.density, FactorizedDensity)
    y = torch.randn(2, 8, 8, 8)
    plain, noisy = module(y), module(y, noise=True)
    torch.testing.assert_close(plain.z_hat, plain.z.round())
    torch.testing.assert_close(plain.bits, module.density(plain.z.round()).sum((1, 2, 3)))
    assert torch.equal(noisy.z_hat, plain.z_hat)
    assert not torch.equal(noisy.bits, plain.bits)
    assert plain.codes is None


@pytest.mark.parametrize("make", [categorical, finite, factorized])
def test_z_hat_passes_gradients_to_the_analysis(make) -> None:
    module = make()
    y = torch.randn(1, 8, 8, 8, requires_grad=True)
    out = module(y)
    through = torch.autograd.grad(out.z_hat.square().sum(), [y, *module.analysis.parameters()])
    assert all(g.abs().sum() > 0 for g in through)


def test_factorized_bits_train_density_and_analysis() -> None:
    module = factorized()
    bits = module(torch.randn(1, 8, 8, 8), noise=True).bits.sum()
    wanted = [*module.density.parameters(), *module.analysis.parameters()]
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(bits, wanted))


def test_finite_scalars_reduce_z_to_a_channel_per_level_and_have_no_loss() -> None:
    module = finite()
    out = module(torch.randn(2, 8, 8, 12))
    assert out.z.shape == (2, 3, 2, 3)
    assert out.z.abs().max() < 1
    assert out.codes is None
    torch.testing.assert_close(out.bits, torch.full((2,), 6 * math.log2(36)))
    # Channel i of z_hat is that of z, rounded to its levels: thirds of [-1, 1], or halves.
    steps = torch.tensor([2 / 3, 1, 1]).view(1, 3, 1, 1)
    rounded = ((out.z + 1) / steps).round() * steps - 1
    for i in range(8):
        torch.testing.assert_close(out.z_hat[:, i], rounded[:, i % 3])
