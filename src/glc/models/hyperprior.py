"""The hyperprior: the hyper-latent z is the side information of the context model (paper section 3.3.1)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.layers.blocks import DepthConvBlock, SubpixelUpsample
from glc.models.entropy import FactorizedDensity, quantize
from glc.models.quantizer import FiniteScalarQuantizer, VectorQuantizer

HYPER_DOWNSAMPLING = 4
"""Positions of y per position of z along a side."""


class HyperOutput(NamedTuple):
    """Output of a hyperprior for y `[B, N, h, w]`."""

    z: Tensor
    """`[B, N, h / 4, w / 4]`, before quantisation; d channels in (-1, 1) with finite scalar quantisation."""
    z_hat: Tensor
    """The quantised z, with a straight-through gradient."""
    codes: Tensor | None
    """The codewords with the gradient to C_h, for its loss; None if there are none to learn."""
    indices: Tensor
    """Symbols of z: categorical `[B, h / 4, w / 4]` in `[0, M)`; factorised integers of z's shape."""
    bits: Tensor
    """`[B]`: bits of z per image."""


def _analysis(channels: int) -> nn.Sequential:
    return nn.Sequential(
        DepthConvBlock(channels, channels),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        nn.LeakyReLU(0.01),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1),
    )


def _synthesis(channels: int) -> nn.Sequential:
    return nn.Sequential(
        SubpixelUpsample(channels, channels),
        SubpixelUpsample(channels, channels),
        DepthConvBlock(channels, channels),
        DepthConvBlock(channels, 2 * channels),
        DepthConvBlock(2 * channels, 3 * channels),
    )


class CategoricalHyperprior(nn.Module):
    """z as indices into a codebook C_h, sent in log2(M) bits each.

    ```
    y [B, N, h, w] --h_a--> z [B, N, h/4, w/4] --C_h--> indices --C_h--> z_hat --h_s--> prior [B, 3N, h, w]
    ```

    With `levels`, C_h is a `FiniteScalarQuantizer`: a learned 1x1 convolution and tanh reduce z to as many
    channels, and the codewords have N channels again, so that a decoder is the same.

    Args:
        channels: N.
        codebook_size: M of C_h (as large as C in the paper).
        projected: see `VectorQuantizer`; without effect with `levels`.
        normalize: scale each vector of z to unit root mean square. The gated layers of h_a square the
            magnitude of y, so that the loss of C_h may grow until it dominates. The released network does not
            normalize.
        levels: see `FiniteScalarQuantizer`; None for learned codewords.
    """

    def __init__(
        self,
        channels: int,
        codebook_size: int,
        projected: bool = False,
        normalize: bool = False,
        levels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.analysis = _analysis(channels)
        self.reduce = None if levels is None else nn.Conv2d(channels, len(levels), 1)
        self.quantizer = (
            VectorQuantizer(codebook_size, channels, projected)
            if levels is None
            else FiniteScalarQuantizer(codebook_size, channels, levels)
        )
        self.synthesis = _synthesis(channels)

    def forward(self, y: Tensor, noise: bool = False) -> HyperOutput:
        """Encode y `[B, N, h, w]`, h and w multiples of 4; `noise` has no effect on indices."""
        z = self.analysis(y)
        if self.normalize:
            z = F.rms_norm(z.permute(0, 2, 3, 1), z.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
        if self.reduce is not None:
            z = self.reduce(z).tanh()
        quantized = self.quantizer(z)
        b, h, w = quantized.indices.shape
        bits = z.new_full((b,), h * w * math.log2(self.quantizer.size))
        return HyperOutput(z, quantized.quantized, quantized.codes, quantized.indices, bits)

    def decode(self, indices: Tensor) -> Tensor:
        """Return z_hat `[B, N, h / 4, w / 4]` for indices `[B, h / 4, w / 4]`."""
        return self.quantizer.decode(indices)


class FactorizedHyperprior(nn.Module):
    """z as integers under a learned density per channel (Ballé et al. 2018): an ablation of the paper.

    ```
    y [B, N, h, w] --h_a--> z [B, N, h/4, w/4] --round--> z_hat --h_s--> prior [B, 3N, h, w]
    ```

    Args:
        channels: N.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.analysis = _analysis(channels)
        self.density = FactorizedDensity(channels)
        self.synthesis = _synthesis(channels)

    def forward(self, y: Tensor, noise: bool = False) -> HyperOutput:
        """Encode y `[B, N, h, w]`, h and w multiples of 4.

        Args:
            y: output of g_a.
            noise: estimate the bits of z plus uniform noise instead of its rounding (training).
        """
        z = self.analysis(y)
        z_hat = quantize(z)
        coded = z + torch.rand_like(z) - 0.5 if noise else z_hat
        return HyperOutput(z, z_hat, None, z_hat.detach().long(), self.density(coded).sum((1, 2, 3)))

    def decode(self, indices: Tensor) -> Tensor:
        """Return z_hat `[B, N, h / 4, w / 4]` for integers of that shape."""
        return indices.to(next(self.parameters()).dtype)
