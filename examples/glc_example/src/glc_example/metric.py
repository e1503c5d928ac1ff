"""A metric of a complete test set."""

import torch
from torch import Tensor
from torchmetrics import Metric


class WorstPSNR(Metric):
    """The lowest PSNR of all images, in dB."""

    full_state_update = False
    higher_is_better = True
    worst: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Processes combine their states by the minimum.
        self.add_state("worst", torch.tensor(torch.inf), dist_reduce_fx="min")

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add images `[B, 3, H, W]` in [-1, 1]."""
        error = (x - x_hat).square().mean((1, 2, 3))
        self.worst = torch.minimum(self.worst, (10 * torch.log10(4 / error)).min())

    def compute(self) -> Tensor:
        """Return the lowest PSNR since the last reset."""
        return self.worst
