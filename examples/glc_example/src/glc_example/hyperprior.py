"""A hyperprior."""

import math

import torch
from torch import Tensor, nn

from glc.models.hyperprior import HyperOutput
from glc.models.quantizer import VectorQuantizer


class PatchHyperprior(nn.Module):
    """Codes z as codebook indices, one per 4 x 4 positions of y.

    ```
    y [B, N, h, w] --h_a--> z [B, N, h/4, w/4] --codebook--> z_hat --h_s--> prior [B, 3N, h, w]
    ```

    The codec runs h_s in integer arithmetic, because encoder and decoder must compute equal probabilities. It
    may use only the layers of `glc.codec.entropy.integer_nets`. h_a runs in the encoder only: any layers.

    Args:
        channels: N.
        codebook_size: number of codewords.
    """

    downsampling = 4

    def __init__(self, channels: int, codebook_size: int) -> None:
        super().__init__()
        self.analysis = nn.Conv2d(channels, channels, 4, stride=4)
        self.quantizer = VectorQuantizer(codebook_size, channels)
        last = nn.Conv2d(channels, 3 * channels, 1)
        self.synthesis = nn.Sequential(
            nn.Conv2d(channels, 16 * channels, 1), nn.PixelShuffle(4), nn.LeakyReLU(0.01), last
        )
        with torch.no_grad():
            assert last.bias is not None
            last.bias[: 2 * channels] += 1  # quantisation steps and scales start near 1

    def forward(self, y: Tensor, noise: bool = False) -> HyperOutput:
        """Encode y `[B, N, h, w]`, h and w multiples of 4. `noise` has no effect on indices."""
        z = self.analysis(y)
        quantized = self.quantizer(z)
        b, h, w = quantized.indices.shape
        bits = z.new_full((b,), h * w * math.log2(self.quantizer.size))
        return HyperOutput(z, quantized.quantized, quantized.codes, quantized.indices, bits)

    def decode(self, indices: Tensor) -> Tensor:
        """Return z_hat `[B, N, h / 4, w / 4]` for indices `[B, h / 4, w / 4]`."""
        return self.quantizer.decode(indices)
