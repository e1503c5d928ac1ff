"""Cutting pictures to size: random crops to train on, centred ones to validate on."""

from __future__ import annotations

import numpy as np
from PIL import Image


def random_crop(
    picture: Image.Image,
    crop: int,
    rng: np.random.Generator,
    min_scale: float = 1.0,
    max_scale: float = 1.0,
    flip: bool = True,
) -> Image.Image:
    """Cut a random square out of a picture, scaled by a random factor before.

    The factor is drawn log-uniformly from [min_scale, max_scale] and raised where the scaled picture would be
    smaller than the crop: such a picture ends with its short side equal to the crop. Four draws of `rng`.

    Returns:
        RGB picture of crop x crop pixels, mirrored in half of the cases if `flip`.
    """
    draw_scale, draw_x, draw_y, draw_flip = rng.random(4)
    scale = min_scale * (max_scale / min_scale) ** draw_scale
    scale = max(scale, crop / min(picture.size))
    if scale == 1.0:
        left = int(draw_x * (picture.width - crop + 1))
        top = int(draw_y * (picture.height - crop + 1))
        cut = picture.crop((left, top, left + crop, top + crop))
    else:
        # Resampling only the part that stays: cheaper than scaling everything first.
        side = min(crop / scale, *picture.size)
        left, top = draw_x * (picture.width - side), draw_y * (picture.height - side)
        box = (left, top, min(left + side, picture.width), min(top + side, picture.height))
        cut = picture.resize((crop, crop), Image.Resampling.BICUBIC, box=box)
    if flip and draw_flip < 0.5:
        return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return cut


def centre_crop(picture: Image.Image, crop: int | None, stride: int) -> Image.Image:
    """Cut the middle out of a picture.

    Args:
        picture: RGB.
        crop: side of the square to cut, or None for the largest rectangle with sides divisible by `stride`.
        stride: see `crop`.

    A picture too small for it is scaled up until its short side fits.
    """
    least = stride if crop is None else crop
    if min(picture.size) < least:
        scale = least / min(picture.size)
        width, height = (max(least, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    width, height = (side - side % stride for side in picture.size) if crop is None else (crop, crop)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
