"""An encoder E."""

from torch import Tensor, nn


class PatchEncoder(nn.Module):
    """Maps x `[B, 3, H, W]` in [-1, 1] to l `[B, latent_channels, H / f, W / f]`.

    Args:
        latent_channels: C.
        width: hidden channels.
        downsampling: f, the same as the decoder's.
    """

    def __init__(self, latent_channels: int, width: int = 64, downsampling: int = 16) -> None:
        super().__init__()
        self.latent_channels = latent_channels  # glc reads these two
        self.downsampling = downsampling
        self.patches = nn.Conv2d(3, width, downsampling, stride=downsampling)
        self.mix = nn.Sequential(nn.GELU(), nn.Conv2d(width, latent_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return l, in float32 also under autocast."""
        return self.mix(self.patches(x)).float()
