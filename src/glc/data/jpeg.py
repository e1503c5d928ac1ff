"""Crops of JPEGs, of which only the rows down to the crop are decoded, to the pixels of the complete image.

A baseline JPEG codes its rows from top to bottom. If its header states a smaller height, decoders stop there;
their last row differs, since chroma is interpolated between rows. Progressive JPEGs have no such prefix.

`simplejpeg` decodes if it is installed: it has the pixels of Pillow (both contain libjpeg-turbo), without
Pillow's fourth byte per pixel and its copies.
"""

import importlib
import io
import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from PIL import Image

from glc.data.images import inspect, open_image, read_rgb

decode_jpeg: Callable[..., np.ndarray] | None = None
with suppress(ImportError):
    decode_jpeg = importlib.import_module("simplejpeg").decode_jpeg

_CONTEXT = 8
"""Rows decoded below a crop; interpolated chroma needs two."""


class Jpeg:
    """A JPEG whose colours need no conversion, undecoded. It is cut like a Pillow image.

    Args:
        data: the file; its header was checked by `open_jpeg`.
        name: for messages.
        size: width and height in pixels.
        height_at: position of the height in the file.
    """

    def __init__(self, data: bytes, name: str, size: tuple[int, int], height_at: int) -> None:
        self.size = self.width, self.height = size
        self._data, self._name, self._height_at = data, name, height_at

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """Return the pixels in a box (left, top, right, bottom) that lies in the image.

        Raises:
            ImageError: they cannot be decoded.
        """
        left, top, right, bottom = box
        height = min(self.height, bottom + _CONTEXT)
        at = self._height_at
        data = b"".join((self._data[:at], height.to_bytes(2, "big"), self._data[at + 2 :]))
        try:
            if decode_jpeg is None:
                return Image.open(io.BytesIO(data), formats=("JPEG",)).crop(box)
            return Image.fromarray(decode_jpeg(data, strict=False)[top:bottom, left:right])
        except Exception:  # decoders raise errors of many types; this one finds the reason, or decodes
            return read_rgb(self._data, self._name).crop(box)

    def resize(
        self, size: tuple[int, int], resample: Image.Resampling, box: tuple[float, float, float, float]
    ) -> Image.Image:
        """Return a box scaled to a size, by a filter that reaches two pixels of the smaller scale.

        Raises:
            ImageError: it cannot be decoded.
        """
        reach = [2 * max(1.0, (box[i + 2] - box[i]) / size[i]) + 1 for i in (0, 1)]
        left, top = (max(0, math.floor(box[i] - reach[i])) for i in (0, 1))
        right, bottom = (min(self.size[i], math.ceil(box[i + 2] + reach[i])) for i in (0, 1))
        # At its place in an image of the complete size, otherwise not set: Pillow derives from the size the
        # order of its two passes, each of which rounds (findings/pillow_resize_box_height.sh).
        image = Image.new("RGB", self.size, None)
        image.paste(self.crop((left, top, right, bottom)), (left, top))
        return image.resize(size, resample, box=box)


def open_jpeg(data: bytes, name: str) -> Jpeg | None:
    """Return a complete baseline JPEG that reading would not change, such as by its profile; None for others.

    Raises:
        ImageError: it cannot be opened.
    """
    if not (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")):
        return None
    height_at = _find_height(data)
    if height_at is None:
        return None
    image = open_image(data, name)
    if (image.format, image.mode) != ("JPEG", "RGB") or inspect(image, name).treatments:
        return None
    return Jpeg(data, name, image.size, height_at)


def _find_height(data: bytes) -> int | None:
    """Return the position of the height in the header of a baseline JPEG of 8 bits, None if it is not one."""
    at = 2
    while at + 7 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1):  # sequential, Huffman-coded
            return at + 5 if data[at + 4] == 8 else None
        if marker < 0xC4 or (0xC4 < marker < 0xDB) or marker == 0xFF:
            return None  # progressive, lossless, arithmetic-coded; or a scan without a frame
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
