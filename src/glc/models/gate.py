"""The gate: coarser quantisation of y where z shows that little is lost."""

import torch
from torch import Tensor, nn

from glc.layers.blocks import DepthConv, SubpixelUpsample
from glc.models.entropy import lower_bound
from glc.models.transform import Rate


class QuantizationGate(nn.Module):
    """rho(z_hat, rate) >= 1, which multiplies the quantisation steps of y's residuals at each position.

    A decoder has z_hat and the rate index before y, so rho costs no bits. After the idea of GP-ResLC
    (docs/zoo.md).

    ```
    z_hat [B, N, h/4, w/4], weights of the rate points [B, K, h/4, w/4]
      -> two SubpixelUpsample -> DepthConv -> 1x1 -> g [B, 1, h, w] (0 at initialisation)
    rho = max(1, 1 + g)
    ```

    The weights of the rate points are those of linear interpolation between the two nearest. A decoder must
    reproduce rho exactly, so it has only layers that run in integers (`glc.codec.entropy.integer_nets`).

    Args:
        channels: N.
        num_rates: K.
        width: channels within the network.
    """

    def __init__(self, channels: int, num_rates: int, width: int = 32) -> None:
        super().__init__()
        self.num_rates = num_rates
        head = nn.Conv2d(width, 1, 1)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        self.layers = nn.Sequential(
            SubpixelUpsample(channels + num_rates, width),
            SubpixelUpsample(width, width),
            DepthConv(width, width),
            head,
        )

    def forward(self, z_hat: Tensor, rate_index: Rate) -> Tensor:
        """Return rho `[B, 1, h, w]` for z_hat `[B, N, h / 4, w / 4]` at a rate index."""
        b, _, h, w = z_hat.shape
        rate = torch.as_tensor(rate_index, dtype=z_hat.dtype, device=z_hat.device).expand(b)
        points = torch.arange(self.num_rates, dtype=z_hat.dtype, device=z_hat.device)
        # Exact on the grid of the integer networks: rate indexes are multiples of 1 / 4096.
        weights = (1 - (rate[:, None] - points).abs()).clamp_min(0)
        maps = weights[:, :, None, None].expand(-1, -1, h, w)
        return lower_bound(1 + self.layers(torch.cat((z_hat, maps), 1)), 1.0)
