"""The edge term of perceptual mixtures: differences of gradient magnitudes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EdgeDistance(nn.Module):
    """Mean absolute difference of the Sobel magnitudes of two images, over channels and positions.

    ```
    |g(x) - g(y)|,  g(x) = sqrt((S * x)^2 + (S^T * x)^2 + floor^2),  S the Sobel kernel over 8
    ```

    The kernel is scaled to give the slope per pixel: a ramp of slope a has the magnitude a. Positions whose
    neighbourhood leaves the image are omitted. The magnitude ignores the direction of an edge, so the term
    compares how sharp the images are, not their colours. A network-free relative of the edge terms of AEIC
    (2025), which compares Sobel images by DISTS.

    Args:
        floor: smallest magnitude, which keeps the gradient finite in flat areas.
    """

    def __init__(self, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor
        kernel = torch.tensor([1.0, 2.0, 1.0])[:, None] * torch.tensor([-1.0, 0.0, 1.0]) / 8
        self.register_buffer("kernels", torch.stack([kernel, kernel.T])[:, None], persistent=False)
        self.kernels: Tensor

    def magnitudes(self, x: Tensor) -> Tensor:
        """Return the gradient magnitudes `[B, C, H - 2, W - 2]` of x `[B, C, H, W]`, float32."""
        with torch.autocast(x.device.type, enabled=False):
            slopes = F.conv2d(x.float().flatten(0, 1)[:, None], self.kernels)
            squared = slopes.square().sum(1) + self.floor**2
            return squared.sqrt().unflatten(0, x.shape[:2])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances `[B]` between x and y `[B, C, H, W]`."""
        return (self.magnitudes(x) - self.magnitudes(y)).abs().mean((1, 2, 3))
