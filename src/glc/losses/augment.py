"""Random augmentations for perceptual losses: crop, flips, transpose, downscaling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST = 32
"""Smallest side after augmentation, in pixels: AlexNet needs at least 31."""


class RandomAugmentation(nn.Module):
    """Apply the same random augmentation to both images of a perceptual distance during training.

    A fixed network has blind spots that depend on the grid of its strides and on its scale, and a decoder
    learns artefacts that lower this distance and no other. Augmentations that change at each step prevent
    this (the idea of E-LPIPS, Kettunen et al. 2019, with fewer kinds of augmentation). In evaluation mode the
    images are compared unchanged.

    Args:
        distance: maps two batches `[B, 3, H, W]` to distances `[B]`.
        shift: crop 0 to `shift - 1` rows at the top and columns at the left.
        smaller: probability of downscaling, 0 to 1.
        min_scale: smallest scale when downscaling; the largest is halfway between it and 1.
        generator: random numbers, on the CPU; None for torch's default generator.
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
        """Return the distances `[B]` between x and y `[B, 3, H, W]` in [-1, 1].

        Cropping and downscaling leave at least `LEAST` pixels per side, or all of the side if it is shorter.
        """
        return self.distance(*self.augment(x, y)) if self.training else self.distance(x, y)

    def augment(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Apply one random augmentation to all images. Its parameters are sampled on the CPU: no GPU sync."""
        top, left = torch.randint(0, self.shift, (2,), generator=self.generator).tolist()
        flip_rows, flip_columns, transpose, downscale = (
            torch.rand(4, generator=self.generator) < torch.tensor([0.5, 0.5, 0.5, self.smaller])
        ).tolist()
        scale = self.min_scale + (1 - self.min_scale) / 2 * torch.rand((), generator=self.generator).item()
        height, width = images[0].shape[-2:]
        top, left = min(top, max(0, height - LEAST)), min(left, max(0, width - LEAST))
        # Half a row more, since interpolate rounds sides down.
        scale = min(1.0, max(scale, (LEAST + 0.5) / min(height - top, width - left)))
        flipped = [-2] * flip_rows + [-1] * flip_columns
        augmented = []
        for image in images:
            out = image[..., top:, left:].flip(flipped)
            if transpose:
                out = out.transpose(-1, -2)
            if downscale:
                out = F.interpolate(out, scale_factor=scale, mode="bilinear", antialias=True)
            augmented.append(out)
        return tuple(augmented)
