"""Read images, convert value ranges and pad; the only module that does any of these.

Needs Pillow, numpy and torch (imported on first use, so that commands that only read images start fast).

Conversion of each kind of image to 8-bit RGB (colour profiles are ignored):

| image                                  | treatment                                                       |
|----------------------------------------|-----------------------------------------------------------------|
| 8-bit RGB                              | unchanged                                                       |
| grey, 1-bit                            | the grey value in all three channels                            |
| palette                                | looked up                                                       |
| CMYK, YCbCr, HSV                       | Pillow's conversion                                             |
| alpha (RGBA, LA, transparent palette)  | composited on white                                             |
| 16-bit grey                            | divided by 257 and rounded: 0..65535 becomes 0..255             |
| 16-bit colour                          | the high byte of each channel (as Pillow reads it)              |
| 32-bit integer grey                    | the same when all values lie in 0..65535, else an error         |
| float grey                             | 0..1 becomes 0..255; values outside (or NaN) are an error       |
| animation, several pages               | the first frame                                                 |
| EXIF orientation                       | applied                                                         |
| truncated, corrupt, not an image       | `ImageError`                                                    |
| more than `MAX_PIXELS` pixels          | `ImageError`, before anything is decoded                        |
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Union

import numpy as np
from PIL import Image

from glc.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

ImageSource = Union[str, "os.PathLike[str]", bytes, IO[bytes], Image.Image]
ImageLike = Union[ImageSource, np.ndarray, "Tensor"]
"""A path, a PIL image, an array `[H, W, 3]` of uint8, or a float tensor `[3, H, W]` in [0, 1]."""

MAX_PIXELS = 178_956_970
"""Images above this are refused as decompression bombs (Pillow's own hard limit)."""

# Raster formats that Pillow decodes itself. Others, such as EPS, start external programs.
_FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "TGA", "ICO",
)  # fmt: skip

IMAGE_SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        "jpg", "jpeg", "jpe", "png", "webp", "avif", "tif", "tiff", "bmp", "dib", "gif", "ppm", "pgm", "pbm",
        "pnm", "jp2", "j2k", "tga",
    )
)  # fmt: skip
"""Lower-case file name endings that count as images in folders and shards."""


def describe(source: ImageSource) -> str:
    """Return the name of an image's source for messages: its path, if it has one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "image in memory")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"image of {len(source)} bytes"
    return str(getattr(source, "name", "image stream"))


def _open_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


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
            image = Image.open(source, formats=_open_formats())
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image in a known format") from error
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


def read_rgb(source: ImageSource, name: str | None = None) -> Image.Image:
    """Read an image as 8-bit RGB, converted as in the table of this module.

    Args:
        source: a path, the file's bytes, a binary file, or an open image (which is not changed).
        name: its name in messages; by default its path.

    Returns:
        A new image, mode RGB, upright.

    Raises:
        ImageError: the image cannot be read; the message names it and gives the reason.
    """
    name = name or describe(source)
    image = open_image(source, name)
    try:
        rgb = _to_rgb(image, name)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # as above: truncated data surfaces as OSError, SyntaxError, struct.error...
        raise ImageError(f"{name}: corrupt or truncated ({_reason(error)})") from error
    if rgb is source:
        return rgb.copy()
    return rgb


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


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image; 1 (upright) if there is none or the EXIF block is corrupt."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # the pixels are fine without it
        return 1
    return value if value in _UPRIGHT else 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    frame = image.tell() if getattr(image, "n_frames", 1) > 1 else 0
    if frame:
        image.seek(0)
    image.load()
    try:
        return _frame_to_rgb(image, name)
    finally:
        if frame:
            image.seek(frame)  # restore the caller's position


def _frame_to_rgb(image: Image.Image, name: str) -> Image.Image:
    turn = _UPRIGHT.get(orientation(image))
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I") or upright.mode == "F":
        return _wide_grey_to_rgb(upright, name)
    if image.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, upright).convert("RGB")
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _wide_grey_to_rgb(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > top:
        kind = "float" if image.mode == "F" else "integer"
        raise ImageError(
            f"{name}: {kind} image with values outside 0..{top:g}; convert it to 8 or 16 bits per channel"
        )
    return Image.fromarray(np.rint(values * (255.0 / top)).astype(np.uint8)).convert("RGB")


def from_uint8(values: Tensor) -> Tensor:
    """Map uint8 levels 0..255 of any shape to float32 in [-1, 1]; `to_uint8` is its exact inverse."""
    return values.float().div_(127.5).sub_(1.0)


def to_uint8(values: Tensor) -> Tensor:
    """Map floats of any shape in [-1, 1] to the nearest uint8 level; values outside are clamped.

    Raises:
        ValueError: a value is NaN (there is no nearest level).
    """
    import torch

    if torch.isnan(values).any():
        raise ValueError("image: contains NaN, which has no pixel value")
    return values.detach().float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an RGB image into a float32 tensor [3, H, W] in [-1, 1].

    Raises:
        ValueError: the image's mode is not RGB (read it with `read_rgb`).
    """
    return stack_images([image])[0]


def stack_images(images: Sequence[Image.Image]) -> Tensor:
    """Turn RGB images of one size into a float32 tensor [B, 3, H, W] in [-1, 1].

    Raises:
        ValueError: as `stack_levels`.
    """
    import torch

    # In numpy, on this thread: with torch's thread pool, loading and training would block each other.
    x = stack_levels(images).numpy().astype(np.float32)
    x /= np.float32(127.5)
    x -= np.float32(1)
    return torch.from_numpy(x)


def stack_levels(images: Sequence[Image.Image]) -> Tensor:
    """Turn RGB images of one size into a uint8 tensor [B, 3, H, W]; `from_uint8` maps it to [-1, 1].

    Raises:
        ValueError: the images differ in size, or one's mode is not RGB (read it with `read_rgb`).
    """
    import torch

    width, height = images[0].size
    levels = np.empty((len(images), 3, height, width), np.uint8)
    for row, image in zip(levels, images, strict=True):
        if image.mode != "RGB":
            raise ValueError(f"image: mode {image.mode} instead of RGB; read it with read_rgb")
        if image.size != (width, height):
            raise ValueError(f"images differ in size: {image.size} and {(width, height)}")
        row[...] = np.asarray(image).transpose(2, 0, 1)
    return torch.from_numpy(levels)


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
    return np.asarray(read_rgb(image)).transpose(2, 0, 1)[None].copy()


def padded_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Return an image's height and width rounded up to multiples of the stride."""
    return -(-height // stride) * stride, -(-width // stride) * stride


def pad(x: Tensor, stride: int) -> Tensor:
    """Extend images `[B, C, H, W]` at the right and lower edge, repeating the last pixels."""
    import torch

    height, width = x.shape[-2:]
    rows, cols = padded_size(height, width, stride)
    return torch.nn.functional.pad(x, (0, cols - width, 0, rows - height), mode="replicate")


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Undo `pad`."""
    return x[..., :height, :width]


def to_image(x: Tensor) -> Image.Image:
    """Turn a tensor [3, H, W] in [-1, 1] into an 8-bit RGB image; values outside are clamped.

    Raises:
        ValueError: another shape, or NaN.
    """
    if x.ndim != 3 or x.shape[0] != 3:
        raise ValueError(f"expected a tensor [3, H, W], got {list(x.shape)}")
    return Image.fromarray(to_uint8(x).permute(1, 2, 0).contiguous().cpu().numpy())


def is_image_name(name: str) -> bool:
    """Whether a file name has an image's suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


class SampleImage:
    """Chooses the image of each sample of a shard: one file, also where a sample has several images.

    A sample with several images and no named one is said once, in a warning.

    Args:
        member: suffix of the file to use (from the first dot of its name), such as `jpg` or `mask.png`; None:
            the first file with the suffix of an image.
        key: the setting, for messages.
    """

    def __init__(self, member: str | None = None, key: str = "data.member") -> None:
        self.member = None if member is None else member.lower().removeprefix(".")
        self.key = key
        self.said = False

    def choose(self, suffixes: Sequence[str], sample: str) -> str | None:
        """Return one of the suffixes of a sample's files, None if there is none to use; `sample` names it."""
        if self.member is not None:
            return next((suffix for suffix in suffixes if suffix.lower() == self.member), None)
        images = [suffix for suffix in suffixes if is_image_name(f"key.{suffix}")]
        if len(images) > 1 and not self.said:
            self.said = True
            _log.warning(
                "%s: a sample has %d images (%s), and %s is used; set %s=%s or another of them",
                *(sample, len(images), ", ".join(images), images[0], self.key, images[1]),
            )
        return images[0] if images else None


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the images under a folder by suffix, sorted by relative path; hidden names are skipped.

    Raises:
        NotADirectoryError: the folder does not exist or is a file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: no such folder")
    return list_files(root, is_image_name)


def list_files(
    folder: Path, accepts: Callable[[str], bool], onerror: Callable[[OSError], None] | None = None
) -> list[Path]:
    """List the files under a folder, sorted by relative path; hidden names are skipped, links followed once.

    Args:
        accepts: whether to list a file of this name.
        onerror: called with the error of a folder that cannot be read.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()  # links may form cycles
    for current, folders, files in os.walk(folder, onerror=onerror, followlinks=True):
        folders.sort()
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(current, name) for name in files if not name.startswith(".") and accepts(name)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())
