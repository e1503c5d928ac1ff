import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from glc.data.augmentations import Augmentations
from glc.errors import SettingError
from tests.data.conftest import numbered


def rng(slot=0):
    return np.random.default_rng(slot)


def brighten(level):
    return lambda image: Image.fromarray(np.asarray(image) // 2 + np.uint8(level() * 100))


GENERATORS = {
    "torch": lambda: torch.rand(()).item(),
    "numpy": lambda: np.random.rand(),  # noqa: NPY002
    "random": random.random,
}


@pytest.mark.parametrize("name", GENERATORS)
def test_transforms_are_seeded_whatever_generator_they_use_and_leave_it_alone(name):
    draw = GENERATORS[name]
    augment = Augmentations([brighten(draw)])
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    first, other = (augment(numbered(3), rng(slot)).tobytes() for slot in (0, 1))
    draw()  # between the calls, training draws from the same generator
    assert augment(numbered(3), rng(0)).tobytes() == first != other
    torch.set_rng_state(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    random.setstate(before[2])
    expected = [draw() for _ in range(2)]
    torch.set_rng_state(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    random.setstate(before[2])
    assert [(draw(), augment(numbered(3), rng()))[0] for _ in range(2)] == expected


def test_transforms_apply_in_order():
    augment = Augmentations(
        [v2.RandomHorizontalFlip(1.0), lambda image: image.point(lambda level: level // 2)]
    )
    expected = np.asarray(numbered(5))[:, ::-1] // 2
    np.testing.assert_array_equal(np.asarray(augment(numbered(5), rng())), expected)


class Broken:
    def __call__(self, image):
        raise KeyError("scale")


def grey(image):
    return image.convert("L")


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            v2.CenterCrop(8),
            r"CenterCrop returned an image of 8 x 8 pixels, mode RGB, for an image of 40 x 36",
        ),
        (grey, "grey returned an image of 40 x 36 pixels, mode L"),
        (v2.PILToTensor(), "PILToTensor returned a Tensor, for an image of 40 x 36 pixels, mode RGB; use"),
        (Broken(), "Broken failed on an RGB image: KeyError: 'scale'"),
    ],
)
def test_a_wrong_result_names_the_transform(transform, message):
    with pytest.raises(SettingError, match=rf"^data\.augment: {message}"):
        Augmentations([transform])(numbered(1), rng())


def test_an_entry_that_is_no_transform_is_refused():
    with pytest.raises(
        SettingError, match=r"^data\.augment: entry 2 is not a transform but \{'brightness': 1\}"
    ):
        Augmentations([grey, {"brightness": 1}])
