"""A loss term."""

from torch import Tensor, nn


class EdgeLoss(nn.Module):
    """Mean absolute error of the differences between neighbouring pixels: the term `edge`."""

    def forward(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """Return `edge` `[B]` for images or latents `[B, C, H, W]`."""
        error = x_hat - x
        rows, columns = error.diff(dim=-2).abs(), error.diff(dim=-1).abs()
        return {"edge": rows.mean((1, 2, 3)) + columns.mean((1, 2, 3))}
