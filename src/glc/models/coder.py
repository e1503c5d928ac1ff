"""Latent coders: map l to symbols with known probabilities, and these to l_hat."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glc.layers.blocks import GatedFeedForward
from glc.models.context import QuadtreeContext
from glc.models.gate import QuantizationGate
from glc.models.hyperprior import HYPER_DOWNSAMPLING, CategoricalHyperprior, FactorizedHyperprior
from glc.models.protocols import require
from glc.models.quantizer import VectorQuantizer, kmeans, nearest_code
from glc.models.transform import Rate, RateTransform


@dataclass(frozen=True, kw_only=True)
class CoderOutput:
    """Output of a coder for a latent l `[B, C, h, w]`."""

    y: Tensor
    """y before quantisation, `[B, N, h, w]`."""
    z: Tensor
    """Input of the codebook: hyper-latent `[B, N, h / 4, w / 4]`; for `IndicesMapCoder`, the latent."""
    z_codes: Tensor | None
    """Codewords of z with the gradient to C_h, or None (see `glc.models.hyperprior.HyperOutput`)."""
    z_indices: Tensor
    """Symbols of z, int64."""
    symbols: Tensor
    """Symbols of y, integers as floats."""
    scales: Tensor
    """Standard deviations of the symbols' Gaussians; empty for fixed-length coding."""
    latent_hat: Tensor
    """l_hat `[B, C, h, w]`."""
    bits_y: Tensor
    """`[B]`: estimated bits of the symbols per image."""
    bits_z: Tensor
    """`[B]`: bits of the hyper-latent per image."""
    rho: Tensor | None = None
    """`[B, 1, h, w]`: factor of the quantisation steps; None without a gate."""

    @property
    def bits(self) -> Tensor:
        """`[B]`: estimated bits per image."""
        return self.bits_y + self.bits_z


class TransformCoder(nn.Module):
    """The latent transform coder (paper section 3.3).

    ```
    l --g_a(rate)--> y --------- round --------> y_hat --g_s(rate)--> l_hat
                     |             ^
                     '--> z, C_h --' prior -> quadtree context (its steps times rho, with a gate)
    ```

    Each network may be user-defined, see `glc.models.protocols`.

    Args:
        latent_channels: C, width of l.
        hyper: the hyperprior; its channels are N.
        context: the context model over N channels.
        num_rates: K, number of trained rate points.
        analysis: g_a; by default a `RateTransform` from C to N channels.
        synthesis: g_s; by default a `RateTransform` from N to C channels.
        gate: coarser quantisation steps from z and the rate index; stage=gate trains one.

    Raises:
        ValueError: the hyperprior or the context model lacks a required member.
    """

    def __init__(
        self,
        latent_channels: int,
        hyper: CategoricalHyperprior | FactorizedHyperprior,
        context: QuadtreeContext,
        num_rates: int = 4,
        analysis: nn.Module | None = None,
        synthesis: nn.Module | None = None,
        gate: QuantizationGate | None = None,
    ) -> None:
        super().__init__()
        require(hyper, "hyperprior", "synthesis", "decode")
        if not hasattr(hyper, "density"):
            require(hyper, "hyperprior", "quantizer")
        require(context, "context model", "channels", "masks", "walk", "decode_mean")
        n = context.channels
        self.num_rates = num_rates
        self.stride: int = getattr(hyper, "downsampling", HYPER_DOWNSAMPLING)
        """Sides of the latent must be multiples of it."""
        self.analysis = analysis or RateTransform(latent_channels, n, n, num_rates, ratio=2**0.5)
        self.hyper = hyper
        self.context = context
        self.synthesis = synthesis or RateTransform(n, n, latent_channels, num_rates, ratio=0.5**0.5)
        self.gate = gate
        self._start_with_unit_scales(n)

    @torch.no_grad()
    def _start_with_unit_scales(self, n: int) -> None:
        """Initialise quantisation steps and scales near 1, where gradients are useful."""
        for module, shifted in ((self.hyper.synthesis, 2 * n), (getattr(self.context, "shared", None), n)):
            found = [] if module is None else list(module.modules())
            layers = [m for m in found if isinstance(m, GatedFeedForward)]
            if layers:  # a user-defined network may have none
                assert layers[-1].project.bias is not None
                layers[-1].project.bias[:shifted] += 1

    def forward(self, latent: Tensor, rate_index: Rate, noise: bool = False) -> CoderOutput:
        """Code l `[B, C, h, w]`, h and w multiples of 4, at a rate index.

        Args:
            latent: l.
            rate_index: one for all images, or one per image `[B]`.
            noise: estimate bits with uniform noise instead of rounding (training).
        """
        y = self.analysis(latent, rate_index)
        # Rounding errors of the entropy model change symbols: float32 also under autocast.
        with torch.autocast(latent.device.type, enabled=False):
            y = y.float()
            hyper = self.hyper(y, noise)
            rho = None if self.gate is None else self.gate(hyper.z_hat, rate_index)
            gated = () if rho is None else (rho,)  # a user's context model may not take it
            context = self.context(y, self.hyper.synthesis(hyper.z_hat), noise, *gated)
        latent_hat = self.synthesis(context.y_hat, rate_index).float()
        return CoderOutput(
            y=y,
            z=hyper.z,
            z_codes=hyper.codes,
            z_indices=hyper.indices,
            symbols=context.symbols,
            scales=context.scales,
            latent_hat=latent_hat,
            bits_y=context.bits.sum((1, 2, 3)),
            bits_z=hyper.bits,
            rho=rho,
        )

    def decode_z(self, indices: Tensor, rate_index: Rate) -> Tensor:
        """Return the l_hat `[B, C, h, w]` predicted from the hyper-latent alone (paper figure 5)."""
        prior = self.hyper.synthesis(self.hyper.decode(indices))
        return self.synthesis(self.context.decode_mean(prior), rate_index).float()


class IndicesMapCoder(nn.Module):
    """Indices-map coding: send each nearest codeword's index in log2(M) bits (the paper's first ablation).

    ```
    l [B, C, h, w] -> nearest of M_rate codewords -> indices [B, h, w] -> codewords = l_hat
    ```

    Lower rates use smaller codebooks, clustered from the autoencoder's codebook (`initialize`).

    Args:
        latent_channels: C.
        sizes: M per rate point, ascending.
    """

    stride = 1

    def __init__(self, latent_channels: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.num_rates = len(sizes)
        self.codebooks = nn.ModuleList(VectorQuantizer(size, latent_channels) for size in sizes)

    @torch.no_grad()
    def initialize(self, codebook: Tensor, generator: torch.Generator | None = None) -> None:
        """Cluster a trained codebook `[M, C]` into the codebooks of all rate points."""
        for quantizer in self.codebooks:
            assert isinstance(quantizer, VectorQuantizer)
            quantizer.initialized.fill_(True)
            if quantizer.size == codebook.shape[0]:
                quantizer.embedding.copy_(codebook)
                continue
            centres = kmeans(codebook, quantizer.size, generator=generator)
            # Codewords of C, not cluster means: a mean of codewords decodes to blur.
            quantizer.embedding.copy_(codebook[nearest_code(centres, codebook)])

    def forward(self, latent: Tensor, rate_index: Rate, noise: bool = False) -> CoderOutput:
        """Code l at a rate index.

        Raises:
            ValueError: a rate index between or outside the trained rate points.
        """
        b = latent.shape[0]
        points = [
            float(r)
            for r in (rate_index.expand(b).tolist() if isinstance(rate_index, Tensor) else [rate_index] * b)
        ]
        if any(r != int(r) or not 0 <= r < self.num_rates for r in points):
            raise ValueError(
                f"rate indexes of indices-map coding are the integers 0 to {self.num_rates - 1}, got {points}"
            )
        quantized = [self.codebooks[int(r)](latent[i : i + 1]) for i, r in enumerate(points)]
        indices = torch.cat([q.indices for q in quantized])
        width = [math.log2(self.sizes[int(r)]) for r in points]
        empty = latent.new_zeros(b, 0)
        return CoderOutput(
            y=latent,
            z=latent,
            z_codes=torch.cat([q.codes for q in quantized if q.codes is not None]),
            z_indices=empty.long(),
            symbols=indices.to(latent.dtype),
            scales=empty,
            latent_hat=torch.cat([q.quantized for q in quantized]),
            bits_y=latent.new_tensor(width) * indices[0].numel(),
            bits_z=latent.new_zeros(b),
        )
