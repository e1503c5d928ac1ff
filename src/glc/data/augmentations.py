"""Random transforms of the training crops, reproducible whatever generator they use."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from glc.errors import SettingError


class Augmentations:
    """A sequence of transforms from an RGB image to an RGB image of the same size.

    Args:
        transforms: such as those of `torchvision.transforms.v2`; their randomness must come from the global
            generators of torch (CPU), numpy or `random`.

    Raises:
        SettingError: one is not callable.
    """

    def __init__(self, transforms: Sequence[Callable[[Image.Image], Any]]) -> None:
        self._transforms = list(transforms)
        for number, transform in enumerate(self._transforms, 1):
            if not callable(transform):
                raise SettingError(
                    f"data.augment: entry {number} is not a transform but {transform}; give a mapping with "
                    "_target_, such as {_target_: torchvision.transforms.v2.ColorJitter, brightness: 0.1}"
                )

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Apply all of them in order, seeded by `rng`; the global generators are as before afterwards.

        Raises:
            SettingError: one fails, or returns anything but an RGB image of the same size.
        """
        if not self._transforms:
            return image
        with _seeded(rng.integers(1 << 32, size=3)):
            for transform in self._transforms:
                image = _applied(transform, image)
        return image


def _applied(transform: Callable[[Image.Image], Any], image: Image.Image) -> Image.Image:
    name = getattr(transform, "__qualname__", type(transform).__qualname__)
    try:
        found = transform(image)
    except Exception as error:  # any, from code that is not ours
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingError(f"data.augment: {name} failed on an RGB image: {text}") from error
    if not isinstance(found, Image.Image):
        got = f"a {type(found).__name__}"
    elif (found.mode, found.size) != (image.mode, image.size):
        got = f"an image of {found.width} x {found.height} pixels, mode {found.mode}"
    else:
        return found
    raise SettingError(
        f"data.augment: {name} returned {got}, for an image of {image.width} x {image.height} pixels, mode "
        f"{image.mode}; use transforms that keep both"
    )


@contextmanager
def _seeded(seeds: np.ndarray) -> Iterator[None]:
    """Seed the global generators within the context, and restore their states."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    try:
        random.seed(int(seeds[0]))
        np.random.seed(seeds[1])  # noqa: NPY002
        # Not torch.manual_seed, which seeds the generators of the GPUs too.
        torch.default_generator.manual_seed(int(seeds[2]))
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.default_generator.set_state(before[2])
