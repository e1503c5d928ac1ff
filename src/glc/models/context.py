"""The quadtree partition context model: y is coded in four steps (paper section 8.2)."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from glc.layers.blocks import DepthConvBlock
from glc.models import quadtree
from glc.models.entropy import gaussian_bits, lower_bound, quantize
from glc.models.protocols import Run, Scales, run_whole
from glc.models.quadtree import STEPS, ContextStep, check_channels


def quadtree_masks(channels: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return which elements each step codes: boolean `[STEPS, 1, channels, height, width]`.

    See `glc.models.quadtree`.
    """
    masks: Tensor = quadtree.quadtree_masks(torch, channels, height, width, device=device)
    return masks


class ContextOutput(NamedTuple):
    """Output of `QuadtreeContext` for y `[B, N, h, w]`; all maps have its shape."""

    symbols: Tensor
    """Integers `round((y / step - mean) / rho)`, as floats, with a straight-through gradient."""
    y_hat: Tensor
    """`(symbols * rho + means) * steps`: input of g_s."""
    means: Tensor
    """Means of `y / step`."""
    scales: Tensor
    """Standard deviations of the symbols, positive."""
    bits: Tensor
    """Estimated bits of each element."""


class QuadtreeContext(nn.Module):
    """Entropy model of y given the prior of the hyper-latent, in four steps (paper section 3.3, 8.2).

    ```
    prior [B, 3N, h, w] -- chunk --> step (>= 0.5), scale, mean of the elements of step 0
          \\-- 1x1 --> reduced [B, N, h, w]
    for k = 1, 2, 3:  [y_hat so far, reduced] -> adaptor_k -> shared blocks -> scale, mean of step k
    y_hat = (symbols + mean) * step
    ```

    A decoder must reproduce it exactly. It therefore has only layers that run in integers: 1x1 and depth-wise
    convolutions, leaky rectifiers, sums and products.

    Args:
        channels: N, the width of y, a multiple of 4.
        depth: number of shared blocks (3 in the paper).
        scale_bound: minimum standard deviation. At 0.11 a zero costs 8e-6 bits; the released network uses
            1e-5.
    """

    def __init__(self, channels: int, depth: int = 3, scale_bound: float = 0.11) -> None:
        super().__init__()
        check_channels(channels)
        self.channels = channels
        self.scale_bound = scale_bound
        self.reduction = nn.Conv2d(3 * channels, channels, 1)
        self.adaptors = nn.ModuleList(DepthConvBlock(2 * channels, 2 * channels) for _ in range(STEPS - 1))
        self.shared = nn.Sequential(*(DepthConvBlock(2 * channels, 2 * channels) for _ in range(depth)))

    def split_prior(self, prior: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split the prior `[B, 3N, h, w]` into steps, scales and means of step 0, and the reduced prior."""
        steps, scales, means = prior.chunk(3, 1)
        return lower_bound(steps, 0.5), scales, means, self.reduction(prior)

    def predict(self, k: int, y_hat: Tensor, reduced: Tensor) -> tuple[Tensor, Tensor]:
        """Return scales (before the bound) and means `[B, N, h, w]` for the elements of step k >= 1.

        Args:
            k: the step.
            y_hat: `symbols + means` of earlier steps, zero elsewhere.
            reduced: the reduced prior.
        """
        scales, means = self.shared(self.adaptors[k - 1](torch.cat((y_hat, reduced), 1))).chunk(2, 1)
        return scales, means

    def masks(self, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """Return which elements each step codes: boolean `[STEPS, 1, N, height, width]`."""
        return quadtree_masks(self.channels, height, width, device)

    def walk(
        self, prior: Tensor, run: Run = run_whole, scales: Scales | None = None
    ) -> Iterator[ContextStep]:
        """Yield the four steps in turn, for encoders, decoders and training.

        The caller sets `step.symbols` before it requests the next step. After the loop the last step's
        `y_hat` is the complete y_hat.

        Args:
            prior: output of the hyperprior, `[B, 3N, h, w]`.
            run: calls a function with maps, possibly in row tiles; see `glc.models.protocols.Run`.
            scales: post-processes the scales `[B, N, h, w]` of a step; by default the identity.
        """
        scales = scales or (lambda found: found)

        def split(prior: Tensor) -> tuple[Tensor, ...]:
            quant_step, found, means, reduced = self.split_prior(prior)
            return quant_step, scales(found), means, reduced

        quant_step, found, means, reduced = run(split, (prior,), (self.reduction,))
        del prior
        masks = self.masks(means.shape[-2], means.shape[-1], means.device)

        def predict(k: int, y_hat: Tensor) -> tuple[Tensor, Tensor]:
            def compute(y_hat: Tensor, reduced: Tensor) -> tuple[Tensor, ...]:
                found, means = self.predict(k, y_hat, reduced)
                return scales(found), means

            found, means = run(compute, (y_hat, reduced), (self.adaptors[k - 1], self.shared))
            return found, means

        return quadtree.walk(torch, (quant_step, found, means), masks, predict)

    def forward(
        self, y: Tensor, prior: Tensor, noise: bool = False, rho: Tensor | None = None
    ) -> ContextOutput:
        """Quantise y `[B, N, h, w]` and estimate its bits, given the prior `[B, 3N, h, w]`.

        Args:
            y: output of g_a.
            prior: output of the hyperprior.
            noise: estimate the bits of `y / step - mean` plus uniform noise instead of its rounding, for a
                smooth gradient of the rate. y_hat is rounded either way.
            rho: factor of the residuals' quantisation steps, `[B, 1, h, w]`; None for 1.
        """
        scales, means, scaled = torch.zeros_like(y), torch.zeros_like(y), None
        steps = self.walk(prior)
        for step in steps if rho is None else quadtree.gate(steps, rho):
            scaled = y / step.quant_step if scaled is None else scaled
            residual = scaled - step.means
            step.symbols = quantize(residual if rho is None else residual / rho)
            scales = torch.where(step.mask, step.scales, scales)
            means = torch.where(step.mask, step.means, means)
        assert scaled is not None
        residual = scaled - means if rho is None else (scaled - means) / rho
        symbols = quantize(residual)
        bounded = lower_bound(scales, self.scale_bound)
        coded = residual + torch.rand_like(residual) - 0.5 if noise else symbols
        return ContextOutput(symbols, step.y_hat, means, bounded, gaussian_bits(coded, bounded))

    def decode_mean(self, prior: Tensor) -> Tensor:
        """Return the y_hat `[B, N, h, w]` with all symbols zero, from the prior alone (paper figure 5)."""
        for step in self.walk(prior):
            step.symbols = torch.zeros_like(step.means)
        return step.y_hat
