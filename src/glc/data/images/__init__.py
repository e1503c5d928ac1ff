"""Read images, convert value ranges and pad; the only package that does any of these.

Needs Pillow, numpy and torch (imported on first use, so that commands that only read images start fast).

Conversion of each kind of image to 8-bit sRGB; docs/images.md has the same table with tested values:

| image                                  | treatment                                                       |
|----------------------------------------|-----------------------------------------------------------------|
| 8-bit RGB                              | unchanged                                                       |
| colour other than sRGB                 | converted: `glc.data.images.colour`                             |
| grey, 1-bit                            | the grey value in all three channels                            |
| palette                                | looked up                                                       |
| CMYK without a profile, YCbCr, HSV     | Pillow's conversion                                             |
| alpha (RGBA, LA, transparent palette)  | composited on a background, white by default                    |
| 16-bit grey                            | divided by 257 and rounded: 0..65535 becomes 0..255             |
| 16-bit colour                          | the high byte of each channel (as Pillow reads it)              |
| 32-bit integer grey                    | the same when all values lie in 0..65535, else an error         |
| float grey                             | 0..1 becomes 0..255; values outside (or NaN) are an error       |
| animation, several pages, gain map     | the first frame                                                 |
| EXIF orientation                       | applied                                                         |
| truncated, corrupt, not an image       | `ImageError`                                                    |
| more than `MAX_PIXELS` pixels          | `ImageError`, before anything is decoded                        |
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, TypeGuard, Union

import numpy as np
from PIL import Image, ImageColor

from glc.data.images.colour import Colour, UnsupportedColour, colour_of, colour_profile, srgb_to_profile
from glc.data.images.formats import (
    LeftOut,
    SampleImage,
    is_image_name,
    list_files,
    list_images,
    open_formats,
    remedy,
)
from glc.data.images.tensors import (
    crop,
    from_uint8,
    pad,
    padded_size,
    png_bytes,
    stack_images,
    stack_levels,
    to_image,
    to_tensor,
    to_uint8,
)
from glc.errors import ImageError, WeightsError, WrongWeightsError

if TYPE_CHECKING:
    from torch import Tensor

ImageSource = Union[str, "os.PathLike[str]", bytes, IO[bytes], Image.Image]
ImageLike = Union[ImageSource, np.ndarray, "Tensor"]
"""A path, a PIL image, an array `[H, W, 3]` of uint8, or a float tensor `[3, H, W]` in [0, 1]."""

MAX_PIXELS = 178_956_970
"""Images above this are refused as decompression bombs (Pillow's own hard limit)."""

__all__ = [
    "MAX_PIXELS",
    "ImageInfo",
    "ImageLike",
    "ImageSource",
    "LeftOut",
    "Report",
    "Reporter",
    "SampleImage",
    "Treatment",
    "colour_profile",
    "crop",
    "describe",
    "from_uint8",
    "inspect",
    "is_image_name",
    "list_files",
    "list_images",
    "log_treatment",
    "open_image",
    "orientation",
    "pad",
    "padded_size",
    "parse_background",
    "png_bytes",
    "read_rgb",
    "remedy",
    "srgb_to_profile",
    "stack_images",
    "stack_levels",
    "to_array",
    "to_image",
    "to_input",
    "to_tensor",
    "to_uint8",
]

_log = logging.getLogger(__name__)


def describe(source: ImageSource) -> str:
    """Return the name of an image's source for messages: its path, if it has one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "image in memory")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"image of {len(source)} bytes"
    return str(getattr(source, "name", "image stream"))


def open_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Open an image without decoding its pixels; only size and format are checked.

    Raises:
        ImageError: it cannot be opened, is not an image, or has more than `MAX_PIXELS` pixels.
    """
    name = name or describe(source)
    try:
        if isinstance(source, Image.Image):
            image = source
        else:
            if isinstance(source, (bytes, bytearray, memoryview)):
                source = io.BytesIO(source)
            image = Image.open(source, formats=open_formats())
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except Image.UnidentifiedImageError as error:
        hint = f"; {found}" if (found := remedy(name)) else ""
        raise ImageError(f"{name}: not an image in a known format{hint}") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise errors of many types on hostile headers
        raise ImageError(f"{name}: cannot be opened ({_reason(error)})") from error
    if 0 in image.size:
        raise ImageError(f"{name}: has no pixels ({image.width} x {image.height})")
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        raise ImageError(f"{name}: {size}, more than the limit of {MAX_PIXELS:,}; downscale it")
    return image


class Treatment(NamedTuple):
    """Something that reading does to an image."""

    text: str
    named: Literal["each", "first", "never"]
    """Whether it is told of each image, of the first one only, or by `glc info` only."""


Report = Callable[[str, Treatment], None]
"""Called with the name of an image and each thing that is done to it."""


class Reporter:
    """Tells what is done to images, each once: the images one by one, or only the first, by the treatment.

    Args:
        say: prints a line.
        most: number of images that are named one by one.
    """

    def __init__(self, say: Callable[[str], None], most: int = 1000) -> None:
        self._say, self._most = say, most
        self._said: set[tuple[str, str]] = set()

    def __call__(self, name: str, treatment: Treatment) -> None:
        """Tell it, unless it was told or need not be."""
        key = (name if treatment.named == "each" else "", treatment.text)
        if treatment.named == "never" or key in self._said or len(self._said) >= self._most:
            return
        self._said.add(key)
        more = "" if treatment.named == "each" else " (said once, of the first such image)"
        self._say(f"{name}: note: {treatment.text}{more}")


log_treatment = Reporter(_log.warning, most=100)
"""Logs what is done to images; used where nothing else reports it."""


@dataclass(frozen=True)
class ImageInfo:
    """What an image file holds, and what reading does to it."""

    format: str
    mode: str
    """Pillow's mode."""
    width: int
    height: int
    """Width and height in pixels, upright."""
    frames: int
    orientation: int
    colour: Colour
    treatments: tuple[Treatment, ...]


def inspect(image: Image.Image, name: str | None = None, background: str = "white") -> ImageInfo:
    """Describe an open image, of which only a PNG is decoded.

    Raises:
        ImageError: its colour cannot be converted, or a PNG is corrupt.
    """
    name = name or describe(image)
    try:
        return _info(image, _colour(image, name), _is_wide(image), background)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: corrupt or truncated ({_reason(error)})") from error


def _colour(image: Image.Image, name: str) -> Colour:
    try:
        # Pillow decodes a PNG to look for EXIF, and closes its file.
        return colour_of(image, {} if image.format == "PNG" else _exif(image))
    except UnsupportedColour as error:
        raise ImageError(f"{name}: {error}") from error


def _info(image: Image.Image, colour: Colour, wide: bool, background: str) -> ImageInfo:
    turn = orientation(image)
    done: list[Treatment] = []
    if colour.problem:
        done.append(Treatment(f"{colour.problem}; read as sRGB", "each"))
    elif colour.treatment != "unchanged":
        named = "each" if colour.treatment.startswith("tone-mapped") else "never"
        done.append(Treatment(f"{colour.source} {colour.treatment}", named))  # type: ignore[arg-type]
    if image.mode == "CMYK" and not colour.converts:
        done.append(Treatment("CMYK without a usable profile, converted by Pillow's formula", "first"))
    if image.has_transparency_data:
        done.append(Treatment(f"transparent, composited on {background}", "first"))
    bits = "16 " if wide or image.mode.startswith("I") else "32 " if image.mode == "F" else ""
    if bits:
        done.append(Treatment(f"{bits}bits per channel reduced to 8", "never"))
    frames = getattr(image, "n_frames", 1)
    if _has_gain_map(image):
        done.append(Treatment("its gain map is ignored: the SDR image is read", "first"))
    elif frames > 1:
        done.append(Treatment(f"the first of {frames} frames is read", "first"))
    if turn != 1:
        done.append(Treatment(f"EXIF orientation {turn} applied", "never"))
    # Pillow turns a TIFF itself.
    width, height = image.size if turn < 5 or image.format == "TIFF" else image.size[::-1]
    return ImageInfo(image.format or "", image.mode, width, height, frames, turn, colour, tuple(done))


def parse_background(colour: str) -> tuple[int, int, int]:
    """Return the RGB levels of a colour such as `white` or `#c0c0c0`.

    Raises:
        ValueError: it is not a colour.
    """
    try:
        return ImageColor.getrgb(colour)[:3]
    except ValueError:
        raise ValueError(f"not a colour: {colour}; use a name or #rrggbb") from None


def read_rgb(
    source: ImageSource,
    name: str | None = None,
    *,
    background: str = "white",
    report: Report = log_treatment,
) -> Image.Image:
    """Read an image as 8-bit sRGB, converted as in the table of this module.

    Args:
        source: a path, the file's bytes, a binary file, or an open image (which is not changed).
        name: its name in messages; by default its path.
        background: colour behind transparent pixels, see `parse_background`.
        report: called with the name and each thing that was done; by default it is logged.

    Returns:
        A new image, mode RGB, upright, without metadata.

    Raises:
        ImageError: the image cannot be read; the message names it and gives the reason.
    """
    name = name or describe(source)
    image = open_image(source, name)
    try:
        colour, wide = _colour(image, name), _is_wide(image)
        low = _low_bytes(image) if wide and colour.encoding is not None else None
        if wide and image.format == "TIFF":
            _fix_planes(image)
        info = _info(image, colour, wide, background)
        rgb = _to_rgb(image, name, colour, low, parse_background(background))
    except (ImageError, MemoryError, WeightsError):  # weights: of `glc.pillow`
        raise
    except Exception as error:  # as above: truncated data surfaces as OSError, SyntaxError, struct.error...
        if isinstance(error.__cause__, WrongWeightsError):  # of `glc.pillow`; the file is good
            raise ImageError(f"{name}: {error}") from error
        raise ImageError(f"{name}: corrupt or truncated ({_reason(error)})") from error
    for treatment in info.treatments:
        report(name, treatment)
    return _without_metadata(rgb, copy=rgb is source)


def _without_metadata(image: Image.Image, copy: bool) -> Image.Image:
    """Drop an EXIF block and a profile, by which the image would be turned or converted again."""
    exif = _exif(image)
    if copy or not isinstance(exif, Image.Exif):
        image = image.copy()
    else:
        exif.clear()
    image.info = {}
    return image


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _exif(image: Image.Image) -> Mapping[int, Any]:
    try:
        return image.getexif()
    except Exception:  # a corrupt block; the pixels are fine without it
        return {}


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image; 1 (upright) if there is none or the EXIF block is corrupt."""
    value = _exif(image).get(0x0112, 1)
    return value if value in _UPRIGHT else 1


def _has_gain_map(image: Image.Image) -> bool:
    xmp = image.info.get("xmp", b"")
    text = xmp if isinstance(xmp, bytes) else str(xmp).encode()
    return b"hdrgm:" in text or b"HDRGainMap" in text or b"hdr-gain-map" in text


def _to_rgb(
    image: Image.Image, name: str, colour: Colour, low: np.ndarray | None, background: tuple[int, int, int]
) -> Image.Image:
    frame = image.tell() if getattr(image, "n_frames", 1) > 1 else 0
    if frame:
        image.seek(0)
    image.load()
    levels = None if low is None else (np.array(image, np.uint16)[..., :3] << 8) | low
    turn = _UPRIGHT.get(orientation(image))  # after decoding: Pillow turns a TIFF itself
    try:
        rgb = _frame_to_rgb(image, name, colour, levels, background)
    finally:
        if frame:
            image.seek(frame)  # restore the caller's position
    return rgb if turn is None else rgb.transpose(turn)


def _frame_to_rgb(
    image: Image.Image,
    name: str,
    colour: Colour,
    levels: np.ndarray | None,
    background: tuple[int, int, int],
) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        grey = _wide_grey(image, name)
        if colour.encoding is not None:
            levels = np.repeat(np.rint(grey * 65535).astype(np.uint16)[..., None], 3, axis=2)
        return colour.to_srgb(Image.fromarray(np.rint(grey * 255).astype(np.uint8)), levels)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        opaque = rgba.getchannel("R") if image.mode in ("LA", "La") else rgba.convert("RGB")
        rgba = colour.to_srgb(opaque, levels).convert("RGBA")
        rgba.putalpha(alpha)
        return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), rgba).convert("RGB")
    return colour.to_srgb(image, levels)


def _tile_mode(tile: Any) -> str:
    return tile.args if isinstance(tile.args, str) else str(tile.args[0]) if tile.args else ""


def _with_mode(tile: Any, mode: str) -> Any:
    return tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))


def _is_wide(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has 16 bits per channel in mode RGB or RGBA."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    tag = getattr(image, "tag_v2", None)
    return any(";16" in _tile_mode(tile) for tile in getattr(image, "tile", ())) or (
        tag is not None and 16 in tag.get(258, ())
    )


def _fix_planes(image: Image.Image) -> None:
    """Correct how uncompressed planes of 16 bits will be decoded: Pillow 13.0 takes them for 8 bits."""
    end = "L" if image.tag_v2.prefix == b"II" else "B"  # type: ignore[attr-defined]
    image.tile = [  # type: ignore[attr-defined]
        _with_mode(tile, f"{_tile_mode(tile)};16{end}") if len(_tile_mode(tile)) == 1 else tile
        for tile in image.tile  # type: ignore[attr-defined]
    ]


def _low_bytes(image: Image.Image) -> np.ndarray | None:
    """Return the low bytes `[H, W, 3]` of an image that is not decoded yet, or None if it has 8 bits.

    Pillow 13.0 keeps the high byte of each value. With the byte order of its raw mode reversed, the low byte.
    """
    file = getattr(image, "fp", None)
    planes = image.format == "TIFF" and image.tag_v2.get(284, 1) == 2  # type: ignore[attr-defined]
    modes = {_tile_mode(tile) for tile in getattr(image, "tile", ())}
    if file is None or planes or not modes or not modes <= set(_REVERSED):
        return None
    file.seek(0)
    other = Image.open(file, formats=open_formats())
    other.tile = [_with_mode(tile, _REVERSED[_tile_mode(tile)]) for tile in other.tile]
    return np.array(other, np.uint16)[..., :3]


_NATIVE_REVERSED = "B" if sys.byteorder == "little" else "L"
_REVERSED = {
    f"{mode};16{end}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for end, other in (("B", "L"), ("L", "B"), ("N", _NATIVE_REVERSED))
}


def _wide_grey(image: Image.Image, name: str) -> np.ndarray:
    """Return a grey image with 16 or more bits as float64 `[H, W]` in [0, 1]."""
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > top:
        kind = "float" if image.mode == "F" else "integer"
        raise ImageError(f"{name}: {kind} image with values outside 0..{top:g}; convert it to 8 or 16 bits")
    return values / top


def _is_converted(image: object) -> TypeGuard[Image.Image]:
    """Whether `read_rgb` would only copy an image, such as one that it has returned."""
    if not isinstance(image, Image.Image) or image.info or getattr(image, "tile", None):
        return False
    return image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS and orientation(image) == 1


def to_input(image: ImageLike) -> Tensor:
    """Return an image as `[1, 3, H, W]`, uint8 levels or float32 in [-1, 1].

    Raises:
        ImageError: a file cannot be read.
        ValueError: an array or a tensor has the wrong type, shape or range.
    """
    import torch

    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(
                f"a tensor must be floats [3, H, W] in [0, 1], got {image.dtype} {list(image.shape)}"
            )
        if 0 in image.shape or not (image.min() >= 0 and image.max() <= 1):
            raise ValueError("a tensor must hold pixels, with values in [0, 1]")
        return image.detach().float()[None] * 2 - 1
    return torch.from_numpy(to_array(image))


def to_array(image: ImageSource | np.ndarray) -> np.ndarray:
    """Return an image as `[1, 3, H, W]`, uint8 levels; raises as `to_input`, and needs no PyTorch."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
            raise ValueError(f"an array must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        shape = list(image.shape)
        try:
            image = Image.fromarray(image)
        except TypeError as error:
            raise ValueError(f"an array must be uint8 [H, W, 3], got {shape}") from error
    rgb = image if _is_converted(image) else read_rgb(image)
    levels = np.empty((1, 3, rgb.height, rgb.width), np.uint8)
    for top in range(0, rgb.height, 512):  # by rows: the image is not copied a second time
        rows = rgb.crop((0, top, rgb.width, min(top + 512, rgb.height)))
        levels[0, :, top : top + 512] = np.asarray(rows).transpose(2, 0, 1)
    return levels
