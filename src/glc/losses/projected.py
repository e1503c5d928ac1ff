"""A discriminator on the features of a fixed pretrained network (Projected GAN, Sauer et al., 2021)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from glc.layers.frozen import Frozen


class ProjectedDiscriminator(nn.Module):
    """Small convolutional heads on random mixtures of a fixed network's feature maps.

    ```
    x --features (fixed)--> F_1 (fine) ... F_L (coarse)
    M_L = 1x1(F_L),  M_i = 1x1(F_i) + 3x3(M_(i+1), upsampled)      random convolutions, fixed
    M_i --head i (trained)--> logits i
    ```

    The random projections mix channels and scales, so that a head cannot rely on few of the features (section
    3.2). They are drawn once and are part of checkpoints. Heads use spectral normalisation; they are
    convolutional without further downsampling, one logit per position, where the paper's reduce each map to
    4 x 4.

    Args:
        features: maps x `[B, 3, H, W]` in [-1, 1] to maps from fine to coarse, such as
            `glc.losses.efficientnet.EfficientNetFeatures` or `glc.losses.vgg.load_vgg`. It is `Frozen`.
        channels: of the mixtures and of the heads.
    """

    def __init__(self, features: nn.Module, channels: int = 64) -> None:
        super().__init__()
        self.features = Frozen(features)
        with torch.no_grad():
            widths = [level.shape[1] for level in features(torch.zeros(1, 3, 64, 64))]
        self.across_channels = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.across_scales = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths[1:])
        for projection in (*self.across_channels, *self.across_scales):
            assert isinstance(projection, nn.Conv2d)
            nn.init.kaiming_normal_(projection.weight)
            nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
            projection.requires_grad_(False)
        self.heads = nn.ModuleList(_head(channels) for _ in widths)

    def mixtures(self, x: Tensor) -> list[Tensor]:
        """Return the mixtures `[B, channels, h_i, w_i]` of x's features, from fine to coarse."""
        levels = [mix(level) for mix, level in zip(self.across_channels, self.features(x), strict=True)]
        for i in range(len(levels) - 2, -1, -1):
            coarse = F.interpolate(levels[i + 1], levels[i].shape[-2:], mode="bilinear", align_corners=False)
            levels[i] = levels[i] + self.across_scales[i](coarse)
        return levels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one map of logits `[B, 1, h_i, w_i]` per head for images `[B, 3, H, W]` in [-1, 1]."""
        return [head(mixture) for head, mixture in zip(self.heads, self.mixtures(x), strict=True)]


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(channels, 1, 3, padding=1)),
    )


class DifferentiableAugmentation(nn.Module):
    """Random changes of the images that a discriminator sees (DiffAugment, Zhao et al., 2020).

    Real and reconstructed images are changed alike, and the gradient flows through: the discriminator cannot
    memorise the training images, and the decoder does not learn the changes. Each image has changes of its
    own. The order is colour (brightness within +-0.5, saturation 0 to 2, contrast 0.5 to 1.5), translation by
    up to 1/8 of the side with zeros outside, and a zero square of half the side (cutout).

    Args:
        policy: which changes, of `colour`, `translation` and `cutout`.

    Raises:
        ValueError: an unknown change.
    """

    KINDS = ("colour", "translation", "cutout")

    def __init__(self, policy: Sequence[str] = KINDS) -> None:
        super().__init__()
        unknown = [kind for kind in policy if kind not in self.KINDS]
        if unknown:
            raise ValueError(
                f"DifferentiableAugmentation: policy={list(policy)}: {unknown[0]!r} is unknown; "
                f"choose of {', '.join(self.KINDS)}"
            )
        self.policy = tuple(policy)

    def forward(self, x: Tensor) -> Tensor:
        """Return changed images for x `[B, 3, H, W]` in [-1, 1]."""
        if "colour" in self.policy:
            x = _coloured(x)
        if "translation" in self.policy:
            x = _translated(x)
        if "cutout" in self.policy:
            x = _cut_out(x)
        return x


def _per_image(x: Tensor) -> Tensor:
    """Return uniform random numbers `[B, 1, 1, 1]` in [0, 1) on the device of x."""
    return torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype)


def _coloured(x: Tensor) -> Tensor:
    x = x + _per_image(x) - 0.5
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * _per_image(x)) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (_per_image(x) + 0.5) + mean


def _offsets(x: Tensor, low: int, high: int, axis: int) -> Tensor:
    """Return for each image a random shift in [low, high], added to the positions along an axis."""
    shift = torch.randint(low, high + 1, (len(x), 1), device=x.device)
    return torch.arange(x.shape[axis], device=x.device)[None] + shift


def _translated(x: Tensor) -> Tensor:
    for axis in (2, 3):
        reach = max(1, round(x.shape[axis] / 8))
        index = _offsets(x, -reach, reach, axis)
        inside = (index >= 0) & (index < x.shape[axis])
        shape = (len(x), 1, -1, 1) if axis == 2 else (len(x), 1, 1, -1)
        index = index.clamp(0, x.shape[axis] - 1).view(shape)
        x = x.gather(axis, index.expand_as(x)) * inside.view(shape)
    return x


def _cut_out(x: Tensor) -> Tensor:
    covered = []
    for axis in (2, 3):
        size = x.shape[axis] // 2
        # The centre is anywhere, so the border may cut the square.
        distance = _offsets(x, -x.shape[axis], 0, axis)
        covered.append((distance >= -(size // 2)) & (distance < size - size // 2))
    square = covered[0][:, None, :, None] & covered[1][:, None, None, :]
    return x * ~square
