"""Content and style losses on the features of a network (Gatys et al., CVPR 2016)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glc.losses.perceptual import LPIPS, RandomAugmentation


def gram(features: Tensor) -> Tensor:
    """Return the Gram matrices `[B, C, C]` of features `[B, C, h, w]`: mean channel products."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


class StyleLoss(nn.Module):
    """The terms `content` and `style`, each the mean over layers of a squared error relative to its target.

    ```
    content:  |F_i(x_hat) - F_i(x)|^2 / |F_i(x)|^2        over `content_layers`
    style:    |G_i(x_hat) - G_i(s)|^2 / |G_i(s)|^2        over all layers, G_i the Gram matrix of F_i
    ```

    Relative errors weigh all layers equally, whatever the magnitude of their features. Both terms are 1 for
    an image whose features are all 0.

    Args:
        perceptual: its backbone computes the features: `LPIPS` with `vgg`, `alex` or `squeeze`.
        content_layers: indices of the layers compared for content, starting at 0.

    Raises:
        ValueError: no network, one with random augmentations, or a layer that does not exist.
    """

    def __init__(self, perceptual: nn.Module | None, content_layers: Sequence[int] = (2,)) -> None:
        super().__init__()
        if perceptual is None:
            raise ValueError(
                "perceptual.required: content and style losses need the network; set perceptual.required=true"
            )
        if isinstance(perceptual, RandomAugmentation):
            raise ValueError(
                "perceptual.augment: not supported by content and style losses; set perceptual.augment=false"
            )
        if not isinstance(perceptual, LPIPS):
            raise ValueError(
                "perceptual.terms: not supported by content and style losses; set perceptual=lpips"
            )
        self.perceptual = perceptual
        self.content_layers = tuple(content_layers)
        with torch.no_grad():
            count = len(perceptual.features(torch.zeros(1, 3, 64, 64)))
        if not self.content_layers or not all(0 <= layer < count for layer in self.content_layers):
            raise ValueError(
                f"stage.content_layers={list(content_layers)}: out of range; give indices of "
                f"the network's layers, 0 to {count - 1}"
            )

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of x `[B, 3, H, W]` in [-1, 1]."""
        return self.perceptual.features(x)

    @torch.no_grad()
    def style_of(self, image: Tensor) -> list[Tensor]:
        """Return the Gram matrices of a style image `[1, 3, H, W]`, for `forward`."""
        return [gram(f) for f in self.features(image)]

    def forward(self, x: Tensor, x_hat: Tensor, style: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compare x_hat with the content of x, both `[B, 3, H, W]` in [-1, 1], and with a style (`style_of`).

        Returns:
            `content` and `style`, each `[B]`.
        """
        with torch.no_grad():
            wanted = self.features(x)
        found = self.features(x_hat)
        content = [_relative(found[i], wanted[i]) for i in self.content_layers]
        styles = [_relative(gram(f), s.expand(len(x), -1, -1)) for f, s in zip(found, style, strict=True)]
        return {"content": torch.stack(content).mean(0), "style": torch.stack(styles).mean(0)}


def _relative(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared error of a `[B, ...]` over the squared norm of b."""
    return (a - b).square().flatten(1).sum(1) / b.square().flatten(1).sum(1).clamp_min(1e-12)
