"""The PatchGAN discriminator (paper section 4.1, after Isola et al. 2017)."""

import math

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """A convolutional classifier with one logit per patch: positive for photographs.

    ```
    x [B, 3, H, W] in [-1, 1] -> 4x4/2, leaky -> (layers - 1) x (4x4/2, norm, leaky) -> 4x4, norm, leaky
      -> 4x4 -> logits [B, 1, H / 2**layers - 2, W / 2**layers - 2]
    ```

    Args:
        channels: width of the first layer; doubled per layer up to eightfold.
        layers: strided layers; with 3 the receptive field is 70 pixels.
        norm: `batch` as in the paper (use `trainer.sync_batchnorm` on several devices), `group` or `none`.

    Raises:
        ValueError: an unknown norm.
    """

    def __init__(self, channels: int = 64, layers: int = 3, norm: str = "batch") -> None:
        super().__init__()

        def make(width: int) -> nn.Module:
            if norm == "batch":
                return nn.BatchNorm2d(width)
            if norm == "group":
                return nn.GroupNorm(math.gcd(16, width), width)
            if norm == "none":
                return nn.Identity()
            raise ValueError(f"norm must be batch, group or none, got {norm!r}")

        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            fan_in, width = width, channels * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            blocks += [
                nn.Conv2d(fan_in, width, 4, stride=stride, padding=1, bias=norm == "none"),
                make(width),
                nn.LeakyReLU(0.2),
            ]
        blocks.append(nn.Conv2d(width, 1, 4, padding=1))
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, 1, h, w]` of images `[B, 3, H, W]`."""
        return self.blocks(x)
