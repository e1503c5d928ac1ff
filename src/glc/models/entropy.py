"""Probability models: Gaussian bits of integers, and a learned factorised density."""

import itertools
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LIKELIHOOD_FLOOR = 1e-5
"""Added to each likelihood: limits the estimate to 16.6 bits per symbol, about the cost of an escape."""


def quantize(x: Tensor) -> Tensor:
    """Round to integers, with the gradient passed straight through."""
    return x + (x.round() - x).detach()


def bits_of(likelihood: Tensor) -> Tensor:
    """Return the bits of likelihoods in [0, 1], elementwise, at least 0."""
    return (-torch.log2(likelihood + LIKELIHOOD_FLOOR)).clamp_min(0)


def gaussian_bits(symbols: Tensor, scales: Tensor) -> Tensor:
    """Return the bits of each symbol under a zero-mean Gaussian integrated over its unit interval.

    Args:
        symbols: integers, or integers plus noise in training.
        scales: standard deviations, positive, of the same shape.
    """
    symbols, scales = symbols.float(), scales.float()
    # By symmetry, use the lower tail: differences of values near 1 would lose precision.
    magnitude = symbols.abs()
    root = math.sqrt(0.5)
    upper = torch.erfc((magnitude - 0.5) * root / scales)
    lower = torch.erfc((magnitude + 0.5) * root / scales)
    return bits_of(0.5 * (upper - lower))


class LowerBound(torch.autograd.Function):
    """`max(x, bound)`; below the bound it passes gradients that increase x (as in CompressAI)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, bound: float) -> Tensor:
        """Clamp x from below."""
        ctx.save_for_backward(x)
        ctx.bound = bound  # type: ignore[attr-defined]
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient where x is at least the bound, or where descent increases x."""
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        passes = (x >= ctx.bound) | (grads[0] < 0)  # type: ignore[attr-defined]
        return grads[0] * passes, None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """Clamp x from below by `bound`, with the gradient of `LowerBound`."""
    return cast(Tensor, LowerBound.apply(x, bound))


class FactorizedDensity(nn.Module):
    """A learned univariate density per channel (Ballé et al. 2018, appendix 6.1).

    The cumulative function of each channel is a small monotone network: positive matrices (softplus) and
    bounded gates, then a sigmoid.

    Args:
        channels: C.
        widths: hidden widths of the network.
        init_scale: spread of the initial density, in symbols.
    """

    def __init__(self, channels: int, widths: tuple[int, ...] = (3, 3, 3), init_scale: float = 10.0) -> None:
        super().__init__()
        self.channels = channels
        sizes = (1, *widths, 1)
        step = init_scale ** (1 / (len(widths) + 1))
        self.matrices = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.gates = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            value = math.log(math.expm1(1 / step / fan_out))
            self.matrices.append(nn.Parameter(torch.full((channels, fan_out, fan_in), value)))
            self.biases.append(nn.Parameter(torch.empty(channels, fan_out, 1).uniform_(-0.5, 0.5)))
            if fan_out > 1:
                self.gates.append(nn.Parameter(torch.zeros(channels, fan_out, 1)))

    def logits(self, values: Tensor) -> Tensor:
        """Return the logits of the cumulative function at values `[C, 1, n]`."""
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            values = F.softplus(matrix) @ values + bias
            if i < len(self.gates):
                values = values + torch.tanh(self.gates[i]) * torch.tanh(values)
        return values

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the bits of symbols `[B, C, H, W]`, elementwise."""
        b, c, h, w = symbols.shape
        values = symbols.float().transpose(0, 1).reshape(c, 1, -1)
        low, high = self.logits(values - 0.5), self.logits(values + 0.5)
        # Evaluate the sigmoids on the side where neither is close to 1. Not with `sign`, which is 0 at the
        # centre of a symmetric density: the most likely symbol would have likelihood 0.
        side = torch.where(low + high > 0, -1.0, 1.0)
        likelihood = (torch.sigmoid(side * high) - torch.sigmoid(side * low)).abs()
        return bits_of(likelihood).view(c, b, h, w).transpose(0, 1)
