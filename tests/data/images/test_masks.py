"""Masks: how images and arrays are read, and the means of blocks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glc.data.images.masks import block_means, read_mask
from glc.errors import ImageError


def test_white_is_one_in_images_and_arrays_of_each_type(tmp_path: Path) -> None:
    levels = np.array([[0, 51], [102, 255]], np.uint8)
    expected = np.array([[0, 0.2], [0.4, 1]], np.float32)
    Image.fromarray(levels).save(tmp_path / "mask.png")
    given = [tmp_path / "mask.png", Image.fromarray(levels).convert("RGB"), levels, expected]
    for mask in given:
        found = read_mask(mask, (2, 2))
        assert found.dtype == np.float32
        assert found == pytest.approx(expected)
    assert read_mask(levels > 60, (2, 2)).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((2, 3)), "the mask: 3 x 2 pixels, the image 2 x 2; make it of that size"),
        (np.ones((2, 2, 3)), r"the mask: an array \[2, 2, 3\] pixels"),
        (np.zeros((2, 2)), "the mask: black everywhere"),
        *((np.full((2, 2), value), r"values must lie in \[0, 1\]") for value in (-0.1, 1.1, np.nan)),
        (np.full((2, 2), 255), r"values must lie in \[0, 1\]"),
    ],
)
def test_other_masks_are_refused(mask: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_mask(mask, (2, 2))


def test_blocks_at_the_edge_repeat_the_last_pixels() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    # Padded to 4 x 4: rows and columns 2 and 3 are equal.
    assert block_means(mask, 4, 2).tolist() == [[0.75, 0], [0, 1]]
    assert block_means(mask, 8, 4).tolist() == [[pytest.approx(7 / 16), 0.5], [0.5, 1]]
