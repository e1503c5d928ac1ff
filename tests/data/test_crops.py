import numpy as np
import pytest
from PIL import Image

from glc.data.stream import centre_crop, random_crop


def coordinates(width, height):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


def test_unscaled_crops_are_exact_windows_that_reach_every_edge():
    picture = coordinates(20, 14)
    lefts, tops = set(), set()
    for seed in range(300):
        cut = np.asarray(random_crop(picture, 8, np.random.default_rng(seed), flip=False)).astype(int)
        left, top = cut[0, 0, 0], cut[0, 0, 1]
        np.testing.assert_array_equal(cut, np.asarray(picture)[top : top + 8, left : left + 8])
        lefts.add(left)
        tops.add(top)
    assert lefts == set(range(13))
    assert tops == set(range(7))


def test_flip_mirrors_about_half_and_changes_nothing_else():
    picture = coordinates(20, 14)
    mirrored = 0
    for seed in range(200):
        plain = np.asarray(random_crop(picture, 8, np.random.default_rng(seed), flip=False))
        cut = np.asarray(random_crop(picture, 8, np.random.default_rng(seed), flip=True))
        if not np.array_equal(cut, plain):
            np.testing.assert_array_equal(cut, plain[:, ::-1])
            mirrored += 1
    assert 70 < mirrored < 130


def test_scaling_shows_a_part_of_the_size_asked_for():
    picture = coordinates(200, 160)
    for seed in range(20):
        cut = np.asarray(random_crop(picture, 32, np.random.default_rng(seed), 0.5, 0.5, flip=False))
        # At scale 0.5 neighbouring pixels lie two source pixels apart.
        steps = np.diff(cut[16, 4:-4, 0].astype(int))
        assert cut.shape == (32, 32, 3)
        assert abs(steps.mean() - 2) < 0.1


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.3, 0.6)])
def test_small_pictures_are_scaled_up_to_the_crop(scales):
    picture = coordinates(10, 30)
    for seed in range(20):
        cut = np.asarray(random_crop(picture, 40, np.random.default_rng(seed), *scales, flip=False)).astype(
            int
        )
        assert cut.shape == (40, 40, 3)
        # The short side is seen whole, so the horizontal coordinate runs over all of it.
        assert cut[0, 0, 0] <= 1
        assert cut[0, -1, 0] >= 8


def test_centre_crop_takes_the_middle():
    picture = coordinates(50, 40)
    whole = np.asarray(centre_crop(picture, None, 16))
    np.testing.assert_array_equal(whole, np.asarray(picture)[4:36, 1:49])
    square = np.asarray(centre_crop(picture, 16, 16))
    np.testing.assert_array_equal(square, np.asarray(picture)[12:28, 17:33])


def test_centre_crop_scales_small_pictures_up():
    assert centre_crop(coordinates(20, 10), None, 16).size == (32, 16)
    assert centre_crop(coordinates(20, 10), 64, 16).size == (64, 64)
