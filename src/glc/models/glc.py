"""The complete codec as one module (paper figure 2)."""

from dataclasses import dataclass

from torch import Tensor, nn

from glc.models.autoencoder import Decoder, Encoder
from glc.models.code_predictor import CodePredictionRefiner
from glc.models.coder import CoderOutput, IndicesMapCoder, TransformCoder
from glc.models.protocols import require
from glc.models.transform import Rate


@dataclass(frozen=True, kw_only=True)
class GLCOutput(CoderOutput):
    """Output of `GLC` for images x `[B, 3, H, W]`: the coder's output, the latent and the reconstruction."""

    latent: Tensor
    """l `[B, C, H / f, W / f]`."""
    x_hat: Tensor
    """`[B, 3, H, W]`: the reconstruction, nominally in [-1, 1], not clamped."""


class GLC(nn.Module):
    """Generative Latent Coding: transform coding of a generative autoencoder's latent.

    ```
    x --E--> l --g_a(rate)--> y --Q--> y_hat --g_s(rate)--> l_hat --D--> x_hat
                              |          ^
                             h_a     quadtree context
                              v          |
                              z --C_h--> z_hat --h_s--> prior
    ```

    E and D may be user-defined, see `glc.models.protocols`.

    Args:
        encoder: E.
        decoder: D.
        coder: from l to l_hat: `TransformCoder`, or `IndicesMapCoder` (ablation).
        refiner: replaces l_hat before D (the ablation "code prediction in the network").

    Raises:
        ValueError: E or D lacks a required member.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        coder: TransformCoder | IndicesMapCoder,
        refiner: CodePredictionRefiner | None = None,
    ) -> None:
        super().__init__()
        require(encoder, "encoder", "latent_channels", "downsampling")
        require(decoder, "decoder", "latent_channels", "downsampling")
        self.encoder = encoder
        self.decoder = decoder
        self.coder = coder
        self.refiner = refiner

    @property
    def stride(self) -> int:
        """Sides of x must be multiples of it: f times the downsampling of the hyperprior."""
        return self.encoder.downsampling * self.coder.stride

    @property
    def num_rates(self) -> int:
        """K: the number of trained rate points."""
        return self.coder.num_rates

    def forward(self, x: Tensor, rate_index: Rate, noise: bool = False) -> GLCOutput:
        """Code and reconstruct images.

        Args:
            x: `[B, 3, H, W]` in [-1, 1], sides multiples of `stride`.
            rate_index: in `[0, K - 1]`: an int, a float between rate points, or one per image `[B]`.
            noise: estimate bits with uniform noise instead of rounding (training).

        Raises:
            ValueError: x has the wrong shape, or the rate index is out of range.
        """
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"x must be [B, 3, H, W], got {list(x.shape)}")
        if x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise ValueError(
                f"sides of x must be multiples of {self.stride}, got {x.shape[2]} x {x.shape[3]}: "
                "pad the image"
            )
        latent = self.encoder(x)
        coded = self.coder(latent, rate_index, noise)
        return GLCOutput(**vars(coded), latent=latent, x_hat=self.decode_latent(coded.latent_hat))

    def decode_latent(self, latent_hat: Tensor) -> Tensor:
        """Return x_hat `[B, 3, H, W]` for l_hat `[B, C, H / f, W / f]`."""
        return self.decoder(latent_hat if self.refiner is None else self.refiner(latent_hat))


def count_parameters(module: nn.Module) -> int:
    """Return the number of elements in all parameters of a module."""
    return sum(p.numel() for p in module.parameters())
