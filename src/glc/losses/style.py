"""Content and style of images, from the features of a network (Gatys et al., CVPR 2016)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glc.losses.augment import RandomViews
from glc.losses.perceptual import LPIPS


def gram(features: Tensor) -> Tensor:
    """Return the Gram matrices `[B, C, C]` of features `[B, C, h, w]`: channel products, mean over places."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


class StyleLoss(nn.Module):
    """The terms `content` and `style`, each the mean over layers of a squared error relative to its target.

    ```
    content:  |F_i(x_hat) - F_i(x)|^2 / |F_i(x)|^2        over `content_layers`
    style:    |G_i(x_hat) - G_i(s)|^2 / |G_i(s)|^2        over all layers, G_i the Gram matrix of F_i
    ```

    Relative errors give all layers one weight, whatever the magnitude of their features. Both terms are 1 for
    an image without any feature.

    Args:
        perceptual: whose backbone computes the features: `LPIPS` of `vgg`, `alex` or `squeeze`.
        content_layers: indices of the layers that hold the content, 0 the first.

    Raises:
        ValueError: there is no network, or it sees random views, or it has no such layer.
    """

    def __init__(self, perceptual: LPIPS | RandomViews | None, content_layers: Sequence[int] = (2,)) -> None:
        super().__init__()
        if perceptual is None:
            raise ValueError(
                "content and style are compared by a network: perceptual.required=false is not possible"
            )
        if isinstance(perceptual, RandomViews):
            raise ValueError("content and style have no random views: set perceptual.views=false")
        self.perceptual = perceptual
        self.content_layers = tuple(content_layers)
        with torch.no_grad():
            count = len(perceptual.features(torch.zeros(1, 3, 64, 64)))
        if not self.content_layers or not all(0 <= layer < count for layer in self.content_layers):
            raise ValueError(
                f"stage.content_layers must be indices below {count}, the layers of the network, "
                f"got {list(content_layers)}"
            )

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of x `[B, 3, H, W]` in [-1, 1]."""
        return self.perceptual.features(x)

    @torch.no_grad()
    def style_of(self, image: Tensor) -> list[Tensor]:
        """Return what `forward` needs to know of a style: the Gram matrices of an image `[1, 3, H, W]`."""
        return [gram(f) for f in self.features(image)]

    def forward(self, x: Tensor, x_hat: Tensor, style: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compare x_hat with the content of x, both `[B, 3, H, W]` in [-1, 1], and with a style.

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
