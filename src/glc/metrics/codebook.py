"""Usage of a codebook."""

import torch
from torch import Tensor
from torchmetrics import Metric


def count_codes(indices: Tensor, size: int) -> Tensor:
    """Return how often each of `size` codewords occurs, int64; unlike `bincount` without a GPU sync."""
    flat = indices.flatten()
    return flat.new_zeros(size).scatter_add_(0, flat, torch.ones_like(flat))


class CodebookUsage(Metric):
    """Share of used codewords and perplexity of their distribution, over all indices since `reset`.

    `compute` returns `usage` in [0, 1], `perplexity` in [1, M] (M when all codewords are equally frequent)
    and `count`, the number of distinct codewords.

    Args:
        size: M, the number of codewords.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.add_state("counts", torch.zeros(size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Count indices of any shape, int64 in `[0, M)`."""
        self.counts += count_codes(indices, self.size)

    def compute(self) -> dict[str, Tensor]:
        """Return `usage`, `perplexity` and `count` of the counted indices."""
        used = (self.counts > 0).sum()
        shares = self.counts / self.counts.sum().clamp_min(1)
        entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
        return {"usage": used / self.size, "perplexity": entropy.exp(), "count": used.float()}
