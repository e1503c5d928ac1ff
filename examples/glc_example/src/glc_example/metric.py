"""A metric of a whole set."""

import torch
from torch import Tensor
from torchmetrics import Metric


class WorstPSNR(Metric):
    """The lowest PSNR, in dB, of any image of the set."""

    full_state_update = False
    higher_is_better = True
    worst: Tensor

    def __init__(self) -> None:
        super().__init__()
        # How processes combine their states: the lowest of all.
        self.add_state("worst", torch.tensor(torch.inf), dist_reduce_fx="min")

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Take in images `[B, 3, H, W]` in [-1, 1]."""
        error = (x - x_hat).square().mean((1, 2, 3))
        self.worst = torch.minimum(self.worst, (10 * torch.log10(4 / error)).min())

    def compute(self) -> Tensor:
        """Return the value over all images since the last reset."""
        return self.worst
