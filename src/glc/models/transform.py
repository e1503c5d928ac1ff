"""The transforms g_a and g_s between the latent l and y (paper sections 3.3, 8.2)."""

import torch
from torch import Tensor, nn

from glc.layers.blocks import GatedDepthConvBlock

Rate = int | float | Tensor
"""A rate index from 0 (fewest bits) to K - 1, the trained rate points: an int, a float between two,
or one per image `[B]`."""


class RateScaler(nn.Module):
    """One learned scale per channel and rate point, interpolated linearly between points (q_enc, q_dec).

    Args:
        num_rates: K, the number of trained rate points.
        channels: N.
        ratio: initial ratio of the scales of successive points. With distinct scales the points adapt to
            their lambdas sooner.
    """

    def __init__(self, num_rates: int, channels: int, ratio: float = 1.0) -> None:
        super().__init__()
        if num_rates < 1:
            raise ValueError(f"num_rates must be at least 1, got {num_rates}")
        self.num_rates = num_rates
        # Always on the CPU: on the meta device, torch would import its compiler (160 MB) for the subtraction.
        exponents = torch.arange(num_rates, device="cpu") - (num_rates - 1) / 2
        self.scale = nn.Parameter((ratio**exponents)[:, None].repeat(1, channels))

    def forward(self, rate_index: Rate) -> Tensor:
        """Return the scales `[1 or B, N, 1, 1]` at a rate index.

        Raises:
            ValueError: a rate index lies outside `[0, K - 1]`. Indexes on an accelerator are not checked,
                because that would synchronise with it.
        """
        if not isinstance(rate_index, Tensor):
            self._check(rate_index)
            rate_index = torch.tensor([rate_index], device=self.scale.device)
        elif rate_index.device.type == "cpu" and not torch.compiler.is_compiling():
            for point in rate_index.tolist():
                self._check(point)
        low = (
            rate_index.floor().long().clamp(0, self.num_rates - 1)
            if rate_index.is_floating_point()
            else rate_index.long()
        )
        high = (low + 1).clamp_max(self.num_rates - 1)
        fraction = (rate_index - low).to(self.scale.dtype)[:, None]
        return torch.lerp(self.scale[low], self.scale[high], fraction)[:, :, None, None]

    def _check(self, rate_index: float) -> None:
        if not 0 <= rate_index <= self.num_rates - 1:
            raise ValueError(f"rate_index must lie in [0, {self.num_rates - 1}], got {rate_index}")


class RateTransform(nn.Module):
    """Four gated depth-wise blocks with the rate scaler in the middle: g_a, and mirrored g_s.

    ```
    [B, in, h, w] -> block -> block -> * q(rate) -> block -> block -> [B, out, h, w]
    ```

    Args:
        in_channels: width of the input (the latent's for g_a, N for g_s).
        channels: N, the width of y.
        out_channels: width of the output (N for g_a, the latent's for g_s).
        num_rates: number of rate points K.
        ratio: see `RateScaler`.
    """

    def __init__(
        self, in_channels: int, channels: int, out_channels: int, num_rates: int, ratio: float = 1.0
    ) -> None:
        super().__init__()
        self.head = nn.Sequential(
            GatedDepthConvBlock(in_channels, channels), GatedDepthConvBlock(channels, channels)
        )
        self.scaler = RateScaler(num_rates, channels, ratio)
        self.tail = nn.Sequential(
            GatedDepthConvBlock(channels, channels), GatedDepthConvBlock(channels, out_channels)
        )

    def forward(self, x: Tensor, rate_index: Rate) -> Tensor:
        """Transform a map at a rate index; height and width are unchanged."""
        return self.tail(self.head(x) * self.scaler(rate_index))
