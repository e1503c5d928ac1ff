"""The patch protocol of FID and KID for compression: many patches of few images.

Non-overlapping patches of `size` pixels from the top left corner, and a second grid shifted by half a patch
in both directions; partial patches are dropped (Mentzer et al., NeurIPS 2020, appendix A.7). The size is 256,
or 64 for the 24 images of Kodak.

The appendix describes the second grid as one row and one column smaller than the first. Where at least half a
patch remains at the edge, one more row or column fits, and the published counts include it: images of DIV2K
have a side of 2040 pixels, on which 7 patches fit in either grid, so their count is a multiple of 7, like the
published 6,573. With one row and column less, an image of n patches per row would give 13 n - 6 patches, and
no 100 integers n give a sum of 6,573.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


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
