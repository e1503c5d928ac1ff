"""The patch protocol: which patches, and how many."""

import itertools

import pytest
import torch

from glc.metrics import cut_patches, patch_count

KODAK = [(512, 768)] * 18 + [(768, 512)] * 6


def test_kodak_gives_the_published_counts() -> None:
    assert patch_count(KODAK) == 192
    assert patch_count(KODAK, size=64) == 4152


@pytest.mark.parametrize(
    ("size", "first", "second"),
    [
        ((256, 256), 1, 0),
        ((255, 4000), 0, 0),
        ((256, 4000), 15, 0),  # no whole patch below row 128
        ((383, 384), 1, 0),
        ((384, 384), 1, 1),
        ((512, 768), 6, 2),
        ((640, 640), 4, 4),  # half a patch is left over: the second grid is as large as the first
        ((1356, 2040), 35, 28),
        ((2040, 1356), 35, 28),
        ((1365, 2048), 40, 28),
    ],
)
def test_counts_by_hand(size: tuple[int, int], first: int, second: int) -> None:
    assert patch_count([size], shifted=False) == first
    assert patch_count([size, size, (512, 768)]) == 2 * (first + second) + 8


def test_only_this_reading_of_the_second_grid_explains_div2k() -> None:
    # A side of 2040 pixels holds 7 patches in both grids, whatever the other side is.
    assert {patch_count([(2040, other)]) % 7 for other in range(300, 2041, 12)} == {0}
    assert 6573 % 7 == 0
    # The other reading takes one row and one column less: 7 n + 6 (n - 1) patches from such an image.
    assert (6573 + 6 * 100) % 13 != 0


@pytest.mark.parametrize(("height", "width", "size"), [(40, 61, 16), (31, 16, 16), (20, 20, 7), (15, 40, 16)])
@pytest.mark.parametrize("shifted", [True, False])
def test_patches_are_those_of_the_count(height: int, width: int, size: int, shifted: bool) -> None:
    x = torch.arange(2 * 3 * height * width).view(2, 3, height, width)
    expected = [
        image[:, top : top + size, left : left + size]
        for shift in ((0, size // 2) if shifted else (0,))
        for image in x
        for top, left in itertools.product(range(shift, height, size), range(shift, width, size))
        if top + size <= height and left + size <= width
    ]
    patches = cut_patches(x, size, shifted)
    assert patches.shape == (len(expected), 3, size, size)
    assert patch_count([(height, width)] * 2, size, shifted) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(patches, expected, strict=True))


def test_a_patch_has_two_halves() -> None:
    with pytest.raises(ValueError, match="size=1: give a side of at least 2"):
        patch_count(KODAK, size=1)
    with pytest.raises(ValueError, match="size=0"):
        cut_patches(torch.zeros(1, 3, 8, 8), size=0)
