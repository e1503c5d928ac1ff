"""The rate term R of the rate-distortion objective."""

from torch import Tensor, nn


class RateLoss(nn.Module):
    """Bits per latent position: the terms `rate_y` and `rate_z`.

    Counted per latent position and not per pixel, a rate of a few bits stands beside distortions of
    about 1, for any f; bits per pixel are `rate / f**2`.
    """

    def forward(self, bits_y: Tensor, bits_z: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """Normalise the bits `[B]` of latents `[B, C, h, w]`."""
        positions = latent.shape[-2] * latent.shape[-1]
        return {"rate_y": bits_y / positions, "rate_z": bits_z / positions}
