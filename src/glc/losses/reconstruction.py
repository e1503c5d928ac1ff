"""Reconstruction losses: L1 and LPIPS (paper section 4.1)."""

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from glc.losses.perceptual import LPIPS, Net, RandomAugmentation, WeightsUnavailable

log = logging.getLogger(__name__)


def load_perceptual(
    net: Net = "vgg", weights_dir: str | None = None, required: bool = True, augment: bool = False
) -> LPIPS | RandomAugmentation | None:
    """Return the perceptual distance, or None with a warning when its weights are unavailable.

    Args:
        net: backbone, `vgg`, `alex` or `squeeze`.
        weights_dir: folder with the backbone's weights; None for torch hub's cache, then download.
        required: raise instead of returning None.
        augment: apply random augmentations during training (`RandomAugmentation`).

    Raises:
        WeightsUnavailable: required, and its weights are unavailable.
    """
    try:
        distance = LPIPS(net, weights_dir)
        return RandomAugmentation(distance) if augment else distance
    except WeightsUnavailable as error:
        text = str(error).replace("set weights_dir to", "set perceptual.weights_dir= to")
        if required:
            raise WeightsUnavailable(
                f"{text}\nTo train without the term `lpips`: perceptual.required=false"
            ) from None
        log.warning("training without the term `lpips`: %s", text)
        return None


class ReconstructionLoss(nn.Module):
    """Per-image mean absolute error and perceptual distance: the terms `l1` and `lpips`.

    Args:
        perceptual: maps two batches `[B, 3, H, W]` in [-1, 1] to distances `[B]`, such as
            `glc.losses.perceptual.LPIPS`; None omits the term `lpips`.
    """

    def __init__(self, perceptual: nn.Module | None = None) -> None:
        super().__init__()
        self.perceptual = perceptual

    def forward(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """Compare x and x_hat `[B, 3, H, W]` in [-1, 1]; each term is `[B]`."""
        terms = {"l1": (x - x_hat).abs().mean((1, 2, 3))}
        if self.perceptual is not None:
            terms["lpips"] = self.perceptual(x_hat, x)
        return terms

    def usable(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return the weights without that of `lpips` when there is no perceptual distance."""
        return {name: w for name, w in weights.items() if name != "lpips" or self.perceptual is not None}
