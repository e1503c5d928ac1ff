"""Distances between the feature distributions of original and reconstructed patches.

Every metric here is a `torchmetrics.Metric` with `update(x, x_hat)`, for images float [B, 3, H, W] in
[-1, 1], and a scalar `compute()`. Lower is better; unbiased estimates are around 0 for equal
distributions and may be negative. Features come from a network that takes uint8 patches; see
`glc.metrics.features`.

The patch protocol of FID and KID for compression: non-overlapping patches of `size` pixels from the top left
corner, and a second grid shifted by half a patch in both directions; partial patches are dropped (Mentzer et
al., NeurIPS 2020, appendix A.7). The size is 256, or 64 for the 24 images of Kodak. The appendix describes
the second grid as one row and one column smaller than the first. Where at least half a patch remains at the
edge, one more row or column fits, and the published counts include it: images of DIV2K have a side of 2040
pixels, on which 7 patches fit in either grid, so their count is a multiple of 7, like the published 6,573.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from glc.data.images import to_uint8
from glc.metrics.features import PatchFeatures, clip, inception
from glc.metrics.quality import NotMeasurable


def patch_count(sizes: Iterable[tuple[int, int]], size: int = 256, shifted: bool = True) -> int:
    """Return the number of patches of images of these sizes.

    Kodak gives 192 at 256 pixels and 4,152 at 64. Published: CLIC 2020 test 28,650, DIV2K validation 6,573.

    Args:
        sizes: height and width of each image (the order does not matter), in pixels.
        size: side of a patch, in pixels.
        shifted: also count the second grid.

    Raises:
        ValueError: `size` is below 2.
    """
    shifts = _shifts(size, shifted)
    return sum(
        (max(height - shift, 0) // size) * (max(width - shift, 0) // size)
        for height, width in sizes
        for shift in shifts
    )


def cut_patches(x: Tensor, size: int = 256, shifted: bool = True) -> Tensor:
    """Cut images into patches: the first grid of all images, then the second, each in raster order.

    Args:
        x: images [B, C, H, W] of any dtype.
        size: side of a patch, in pixels.
        shifted: also cut the second grid.

    Returns:
        [N, C, size, size], N as in `patch_count`; N = 0 if the images are too small.

    Raises:
        ValueError: `size` is below 2.
    """
    return torch.cat([_grid(x[..., shift:, shift:], size) for shift in _shifts(size, shifted)])


def _shifts(size: int, shifted: bool) -> tuple[int, ...]:
    if size < 2:
        raise ValueError(f"patches of size={size}: give a side of at least 2 pixels")
    return (0, size // 2) if shifted else (0,)


def _grid(x: Tensor, size: int) -> Tensor:
    channels, (height, width) = x.shape[1], x.shape[-2:]
    if min(height, width) < size:
        return x.new_empty(0, channels, size, size)
    tiles = x.unfold(2, size, size).unfold(3, size, size)  # [B, C, rows, columns, size, size]
    return tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, size, size)


Network = nn.Module | Callable[[], nn.Module]
"""Network from uint8 patches [N, 3, size, size] to features [N, D], or a callable that makes one."""


class FID(FrechetInceptionDistance):
    """Fréchet distance between Gaussians fitted to both sets (Heusel et al., NeurIPS 2017), by torchmetrics.

    With fewer patches than features the covariances are singular and the distance is biased upwards.

    Args:
        size: side of the patches, in pixels.
        shifted: also use the second grid, shifted by half a patch.
        features: the network; Inception by default.
        weights_dir: folder searched first for Inception's weights.

    Raises:
        WeightsUnavailable, FileNotFoundError, ValueError: as `glc.metrics.features.inception`.
    """

    def __init__(
        self,
        size: int = 256,
        shifted: bool = True,
        features: Network | None = None,
        weights_dir: str | Path | None = None,
    ) -> None:
        super().__init__(feature=_network(features, partial(inception, weights_dir)))
        self.size = size
        self.shifted = shifted
        # torchmetrics sets it in update, which is never called in a process without images.
        self.orig_dtype = torch.float32

    def update(self, x: Tensor, x_hat: Tensor) -> None:  # type: ignore[override]
        """Add the patches of x and x_hat, float [B, 3, H, W] in [-1, 1]."""
        for images, real in ((x, True), (x_hat, False)):
            patches, broken = _patches(images, self.size, self.shifted)
            if len(patches):
                super().update(patches, real=real)
            if broken.any():
                self.fake_features_sum += torch.nan

    def compute(self) -> Tensor:
        """Return the distance over everything since `reset`; NaN if an image contained NaN.

        Raises:
            NotMeasurable: fewer than two patches.
        """
        count = int(self.real_features_num_samples)
        if count < 2:
            _refuse(self, f"FID needs at least 2 patches of {self.size} pixels, the images have {count}")
        if not self.fake_features_sum.isfinite().all():
            return torch.tensor(torch.nan, device=self.device)
        return super().compute()


class _FeatureSets(Metric):
    """Keeps the features of all patches.

    torchmetrics' KID hangs when processes have seen different numbers of batches, samples its subsets from
    torch's global generator, and computes in float32.
    """

    full_state_update = False
    higher_is_better = False
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, size: int, shifted: bool, network: PatchFeatures) -> None:
        super().__init__()
        self.size = size
        self.shifted = shifted
        self.network = network
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add the patches of x and x_hat, float [B, 3, H, W] in [-1, 1]."""
        for images, known in ((x, self.real), (x_hat, self.fake)):
            patches, broken = _patches(images, self.size, self.shifted)
            if len(patches):
                known.append(self.network(patches).masked_fill(broken[:, None], torch.nan))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the features of all processes; a process without images contributes an empty set."""
        for known in (self.real, self.fake):
            if not known:
                known.append(torch.empty(0, self.network.num_features, device=self.device))
        super().sync(*args, **kwargs)

    def _sets(self, least: int, advice: str = "") -> tuple[Tensor, Tensor]:
        """Return both sets [N, D], float64, in an order that does not depend on the number of processes."""
        real, fake = dim_zero_cat(self.real), dim_zero_cat(self.fake)
        if len(real) < least:
            need = f"{type(self).__name__} needs at least {least} patches of {self.size} pixels"
            _refuse(self, f"{need}, the images have {len(real)}{advice}")
        return _ordered(real).double(), _ordered(fake).double()


class KID(_FeatureSets):
    """Kernel Inception distance (Binkowski et al., ICLR 2018): unbiased MMD^2 with a cubic kernel.

    The mean over random subsets of patches, which do not depend on the number of processes.

    Args:
        size: side of the patches, in pixels.
        shifted: also use the second grid, shifted by half a patch.
        subsets: number of subsets.
        subset_size: patches per subset, of each set.
        seed: seed of the subsets.
        features: the network; Inception by default.
        weights_dir: folder searched first for Inception's weights.

    Raises:
        WeightsUnavailable, FileNotFoundError, ValueError: as `glc.metrics.features.inception`.
    """

    def __init__(
        self,
        size: int = 256,
        shifted: bool = True,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 0,
        features: Network | None = None,
        weights_dir: str | Path | None = None,
    ) -> None:
        if subsets < 1 or subset_size < 2:
            raise ValueError(
                f"KID: subsets={subsets}, subset_size={subset_size}; need subsets >= 1 and subset_size >= 2"
            )
        super().__init__(size, shifted, _network(features, partial(inception, weights_dir)))
        self.subsets = subsets
        self.subset_size = subset_size
        self.seed = seed

    def compute(self) -> Tensor:
        """Return the mean over the subsets of everything since `reset`; NaN if an image contained NaN.

        Raises:
            NotMeasurable: fewer patches than `subset_size`.
        """
        real, fake = self._sets(self.subset_size, "; reduce subset_size")
        if not (real.isfinite().all() and fake.isfinite().all()):
            return torch.tensor(torch.nan, device=self.device)
        generator = torch.Generator().manual_seed(self.seed)

        def subset(features: Tensor) -> Tensor:
            chosen = torch.randperm(len(features), generator=generator)[: self.subset_size]
            return features[chosen.to(features.device)]

        return torch.stack([poly_mmd(subset(real), subset(fake)) for _ in range(self.subsets)]).mean().float()


class CMMD(_FeatureSets):
    """MMD^2 of CLIP embeddings of unit length with a Gaussian kernel (Jayasumana et al., CVPR 2024).

    Computed over patches here, over full images in the paper: the values are not comparable.

    Args:
        size: side of the patches, in pixels.
        shifted: also use the second grid, shifted by half a patch.
        sigma: width of the kernel.
        scale: factor of the result, for readability.
        unbiased: omit the kernel of each embedding with itself, as in the paper's text. False: as in its
            code, which adds about `scale` (1 - mean kernel) 2 / N.
        features: the network; CLIP ViT-L/14 at 336 pixels by default.
        weights_dir: folder searched first for CLIP's weights.

    Raises:
        WeightsUnavailable, FileNotFoundError, ValueError: as `glc.metrics.features.clip`.
    """

    def __init__(
        self,
        size: int = 256,
        shifted: bool = True,
        sigma: float = 10.0,
        scale: float = 1000.0,
        unbiased: bool = True,
        features: Network | None = None,
        weights_dir: str | Path | None = None,
    ) -> None:
        super().__init__(size, shifted, _network(features, partial(clip, weights_dir)))
        self.sigma = sigma
        self.scale = scale
        self.unbiased = unbiased

    def compute(self) -> Tensor:
        """Return the distance over everything since `reset`; NaN if an image contained NaN.

        Raises:
            NotMeasurable: fewer than two patches.
        """
        real, fake = (nn.functional.normalize(features) for features in self._sets(2))
        within = [self._mean_kernel(features, features, self.unbiased) for features in (real, fake)]
        return (self.scale * (sum(within) - 2 * self._mean_kernel(real, fake, False))).float()

    def _mean_kernel(self, a: Tensor, b: Tensor, without_diagonal: bool) -> Tensor:
        total = a.new_zeros(())
        for rows in a.split(1024):  # in blocks: all rows at once would take gigabytes
            squares = 2 - 2 * rows @ b.T  # squared distances between unit vectors
            total += (-squares / (2 * self.sigma**2)).exp().sum()
        if without_diagonal:  # the kernel is 1 there
            return (total - len(a)) / (len(a) * (len(a) - 1))
        return total / (len(a) * len(b))


def _network(given: Network | None, default: Callable[[], PatchFeatures]) -> PatchFeatures:
    if given is None:
        return default()
    network = given if isinstance(given, nn.Module) else given()
    return network if isinstance(network, PatchFeatures) else PatchFeatures(network)


def _patches(x: Tensor, size: int, shifted: bool) -> tuple[Tensor, Tensor]:
    """Return patches, uint8 [N, 3, size, size], and which of them contained NaN, bool [N]."""
    patches = cut_patches(x, size, shifted)
    if not len(patches):
        height, width = x.shape[-2:]
        warnings.warn(f"no patch of {size} pixels fits into images of {width}x{height}", stacklevel=4)
    return to_uint8(patches.nan_to_num()), patches.isnan().flatten(1).any(1)


def _ordered(features: Tensor) -> Tensor:
    # Sixteen features identify a patch; the order of equal patches does not matter.
    keys = features[:, :16].cpu().numpy()
    return features[torch.from_numpy(np.lexsort(keys.T[::-1])).to(features.device)]


def _refuse(metric: Metric, reason: str) -> NoReturn:
    # torchmetrics leaves the metric synchronised when compute raises.
    with contextlib.suppress(TorchMetricsUserError):
        metric.unsync()
    raise NotMeasurable(reason)
