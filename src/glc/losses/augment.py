"""Images as a loss's network may see them: moved, mirrored, turned, made smaller at random."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST = 32
"""Rows and columns that a view keeps: AlexNet sees no fewer than 31."""


class RandomViews(nn.Module):
    """A perceptual distance that sees both images through the same random view while it is trained with.

    A fixed network has blind spots that lie on the grid of its strides and at its own scale, and a decoder
    finds them: what it draws there lowers this distance and no other. Views that change from step to step
    take the grid away (the idea of E-LPIPS, Kettunen et al. 2019, with fewer kinds of views). In evaluation
    mode the images are compared as they are.

    Args:
        distance: maps two batches `[B, 3, H, W]` to distances `[B]`.
        shift: up to so many rows and columns less one are cut off at the top and left.
        smaller: how often images are made smaller, 0 to 1.
        min_scale: the smallest scale then; the largest is the middle between it and 1.
        generator: draws the views, on the CPU; None for torch's own.
    """

    def __init__(
        self,
        distance: nn.Module,
        shift: int = 8,
        smaller: float = 0.4,
        min_scale: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.distance = distance
        self.shift = shift
        self.smaller = smaller
        self.min_scale = min_scale
        self.generator = generator

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance between x and y `[B, 3, H, W]` in [-1, 1], `[B]`.

        A side of less than twice `LEAST` is made smaller, or cut off, only as far as `LEAST`.
        """
        return self.distance(*self.view(x, y)) if self.training else self.distance(x, y)

    def view(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Return the images through one random view; its numbers are drawn on the CPU, so no GPU waits."""
        top, left = torch.randint(0, self.shift, (2,), generator=self.generator).tolist()
        upside_down, mirrored, turned, smaller = (
            torch.rand(4, generator=self.generator) < torch.tensor([0.5, 0.5, 0.5, self.smaller])
        ).tolist()
        scale = self.min_scale + (1 - self.min_scale) / 2 * torch.rand((), generator=self.generator).item()
        height, width = images[0].shape[-2:]
        top, left = min(top, max(0, height - LEAST)), min(left, max(0, width - LEAST))
        # Half a row more, since sides are rounded down.
        scale = min(1.0, max(scale, (LEAST + 0.5) / min(height - top, width - left)))
        flipped = [-2] * upside_down + [-1] * mirrored
        views = []
        for image in images:
            seen = image[..., top:, left:].flip(flipped)
            if turned:
                seen = seen.transpose(-1, -2)
            if smaller:
                seen = F.interpolate(seen, scale_factor=scale, mode="bilinear", antialias=True)
            views.append(seen)
        return tuple(views)
