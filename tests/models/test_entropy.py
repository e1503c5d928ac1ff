import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from glc.models.entropy import (
    LIKELIHOOD_FLOOR,
    FactorizedDensity,
    bits_of,
    gaussian_bits,
    lower_bound,
    quantize,
)


def test_quantize_gives_exact_integers_and_passes_gradients() -> None:
    x = (40 * torch.randn(1000)).requires_grad_()
    out = quantize(x)
    assert torch.equal(out.detach(), x.detach().round())
    weights = torch.randn(1000)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    assert torch.equal(gradient, weights)


def test_bits_of_likelihoods() -> None:
    bits = bits_of(torch.tensor([1.0, 0.5, 0.25, 0.0]))
    torch.testing.assert_close(bits[1:3], torch.tensor([1.0, 2.0]), atol=1e-3, rtol=0)
    assert bits[0] == 0  # never negative, although the floor lifts the likelihood over 1
    torch.testing.assert_close(bits[3], torch.tensor(-np.log2(LIKELIHOOD_FLOOR), dtype=torch.float32))


def test_gaussian_bits_are_those_of_the_integral_over_a_unit_interval() -> None:
    symbols = np.arange(-40, 41, dtype=np.float64)[:, None]
    scales = np.array([0.05, 0.11, 0.3, 0.5, 1.0, 2.0, 7.0, 30.0])[None, :]
    # In the lower tail, as differences near 1 lose all digits even in double precision.
    magnitude = -np.abs(symbols)
    likelihood = norm.cdf((magnitude + 0.5) / scales) - norm.cdf((magnitude - 0.5) / scales)
    expected = np.maximum(-np.log2(likelihood + LIKELIHOOD_FLOOR), 0)
    actual = gaussian_bits(
        torch.tensor(symbols, dtype=torch.float32).expand(-1, 8),
        torch.tensor(scales, dtype=torch.float32).expand(81, -1),
    )
    np.testing.assert_allclose(actual.numpy(), expected, atol=2e-4)
    assert actual.max() > 16  # the grid reaches into the tails
    assert actual.min() < 1e-4


def test_gaussian_bits_at_noisy_symbols_and_their_gradient() -> None:
    symbols = torch.tensor([0.3, -1.7, 2.2], requires_grad=True)
    scales = torch.tensor([0.5, 1.0, 3.0], requires_grad=True)
    gaussian_bits(symbols, scales).sum().backward()

    def bits(s: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        return -np.log2(norm.cdf((s + 0.5) / sigma) - norm.cdf((s - 0.5) / sigma) + LIKELIHOOD_FLOOR)

    s, sigma, h = symbols.detach().double().numpy(), scales.detach().double().numpy(), 1e-5
    assert symbols.grad is not None
    assert scales.grad is not None
    by_symbol = (bits(s + h, sigma) - bits(s - h, sigma)) / (2 * h)
    by_scale = (bits(s, sigma + h) - bits(s, sigma - h)) / (2 * h)
    np.testing.assert_allclose(symbols.grad.numpy(), by_symbol, rtol=1e-3)
    np.testing.assert_allclose(scales.grad.numpy(), by_scale, rtol=1e-3)


def test_lower_bound_passes_gradients_that_increase_x() -> None:
    x = torch.tensor([0.2, 0.2, 0.5, 0.5, 0.9, 0.9], requires_grad=True)
    out = lower_bound(x, 0.5)
    assert out.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.9, 0.9])
    upstream = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # descent lowers, raises, lowers ...
    (gradient,) = torch.autograd.grad(out, x, upstream)
    assert gradient.tolist() == [0.0, -1.0, 1.0, -1.0, 1.0, -1.0]


def trained_like(channels: int) -> FactorizedDensity:
    """A density whose parameters are not the symmetric ones of the start."""
    density = FactorizedDensity(channels)
    for parameter in density.parameters():
        nn.init.normal_(parameter.data, float(parameter.detach().mean()), 0.5)
    return density


@pytest.mark.parametrize("make", [FactorizedDensity, trained_like])
def test_factorized_likelihoods_over_all_integers_sum_to_one(make: type[FactorizedDensity]) -> None:
    integers = torch.arange(-3000.0, 3001).view(1, 1, -1, 1).expand(1, 5, -1, 1)
    bits = make(5)(integers)
    assert bits.shape == (1, 5, 6001, 1)
    assert torch.isfinite(bits).all()
    assert (bits >= 0).all()
    total = (2.0 ** -bits.double() - LIKELIHOOD_FLOOR).sum((0, 2, 3))
    torch.testing.assert_close(total, torch.ones(5, dtype=torch.double), atol=5e-3, rtol=0)


def test_factorized_bits_belong_to_their_elements_channel() -> None:
    density = trained_like(3)
    symbols = torch.randint(-8, 9, (2, 3, 4, 5)).float()
    whole = density(symbols)
    one = density(symbols[1:, :, 2:3, 3:4])
    torch.testing.assert_close(whole[1:, :, 2:3, 3:4], one)
    swapped = density(symbols.flip(1))
    assert not torch.allclose(whole, swapped.flip(1))


def test_factorized_density_has_its_peak_where_it_is_symmetric() -> None:
    # Without biases the density is even: the difference of logits vanishes exactly at the likeliest symbol.
    density = FactorizedDensity(2)
    for bias in density.biases:
        nn.init.zeros_(bias)
    bits = density(torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 3, 1).expand(1, 2, 3, 1))[0, :, :, 0]
    torch.testing.assert_close(bits[:, 0], bits[:, 2])
    assert (bits[:, 1] <= bits[:, 0]).all()


def test_factorized_density_learns() -> None:
    density = FactorizedDensity(2)
    data = torch.stack([torch.randn(4000) * 2 + 5, torch.randn(4000) * 0.3], 0).round().view(1, 2, -1, 1)
    optimizer = torch.optim.Adam(density.parameters(), 0.05)
    for _ in range(150):
        loss = density(data).mean((0, 2, 3)).sum()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in density.parameters())
        optimizer.step()
    for channel in range(2):
        counts = torch.unique(data[0, channel], return_counts=True)[1].double()
        entropy = -(counts / counts.sum() * (counts / counts.sum()).log2()).sum()
        learned = density(data)[0, channel].mean()
        assert entropy - 1e-3 < learned < entropy + 0.1
