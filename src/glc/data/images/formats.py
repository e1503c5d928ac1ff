"""Which files are images: formats, file name suffixes, optional decoders, and files that are left out."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from PIL import Image

_log = logging.getLogger(__name__)

# Raster formats that Pillow decodes itself. Others, such as EPS, start external programs.
_FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "TGA", "ICO",
)  # fmt: skip
_SUFFIXES = (
    "jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "avif", "tif", "tiff", "bmp", "dib", "gif",
    "ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "tga",
)  # fmt: skip
# Decoders that are used if they are installed: module, package to install, Pillow's format, suffixes.
_PLUGINS = (
    ("pillow_heif", "pillow-heif", "HEIF", ("heic", "heif", "hif")),
    ("pillow_jxl", "pillow-jxl-plugin", "JXL", ("jxl",)),
)
_RAW = "dng cr2 cr3 crw nef nrw arw srf sr2 raf rw2 orf pef srw 3fr iiq erf mef mos mrw x3f kdc dcr"
_OTHERS = "psd psb xcf exr hdr qoi dds pcx sgi jxr wdp icns ico"
# Suffixes of other images, and what turns such a file into one that is read.
_CONVERTERS = {
    **dict.fromkeys(_RAW.split(), "convert raw files to TIFF with dcraw_emu"),
    **dict.fromkeys(("svg", "svgz"), "render SVG with rsvg-convert"),
    "eps": "render EPS with Ghostscript",
    **dict.fromkeys(_OTHERS.split(), "convert them to PNG"),
}  # fmt: skip


@cache
def image_suffixes() -> frozenset[str]:
    """Return the lower-case file name endings, with dot, that count as images in folders and shards."""
    installed = [more for module, _, _, more in _PLUGINS if importlib.util.find_spec(module) is not None]
    return frozenset(f".{ending}" for ending in (*_SUFFIXES, *(e for more in installed for e in more)))


def reads_glc() -> bool:
    """Whether `.glc` files count as images: `glc.pillow` is registered."""
    return "GLC" in Image.OPEN


def open_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read, after loading the installed decoders."""
    return (*_installed_formats(), "GLC") if reads_glc() else _installed_formats()


@cache
def _installed_formats() -> tuple[str, ...]:
    Image.init()
    for module, _, _, _ in _PLUGINS:
        if importlib.util.find_spec(module) is not None:
            loaded = importlib.import_module(module)
            if hasattr(loaded, "register_heif_opener"):
                loaded.register_heif_opener()
    return tuple(name for name in (*_FORMATS, "HEIF", "JXL") if name in Image.OPEN)


def is_image_name(name: str) -> bool:
    """Whether a file name has an image's suffix."""
    ending = os.path.splitext(name)[1].lower()
    return ending in image_suffixes() or (ending == ".glc" and reads_glc())


def remedy(name: str) -> str:
    """Return what to do with an image file that is not read, by its suffix; empty for other files."""
    ending = os.path.splitext(name)[1].lower().lstrip(".")
    for _, package, _, endings in _PLUGINS:
        if ending in endings and f".{ending}" not in image_suffixes():
            return f"pip install {package}"
    return _CONVERTERS.get(ending, "")


class LeftOut:
    """Counts files that are images but are not read, by what to do about them."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, names: Iterable[str]) -> None:
        """Count those of the files that are left out."""
        for name in names:
            if found := remedy(name):
                self._found.setdefault(found, []).append(name)

    def __str__(self) -> str:
        """One line, empty if there are none: number, an example, the remedy."""
        parts = [f"{len(names)} (e.g. {names[0]}): {found}" for found, names in self._found.items()]
        return f"images left out: {'; '.join(parts)}" if parts else ""


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

    One warning says which other images, such as raw files, are left out.

    Raises:
        NotADirectoryError: the folder does not exist or is a file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: no such folder")
    left_out = LeftOut()
    found = list_files(root, is_image_name, left_out=left_out)
    if text := str(left_out):
        _log.warning("%s: %s", root, text)
    return found


def list_files(
    folder: Path,
    accepts: Callable[[str], bool],
    onerror: Callable[[OSError], None] | None = None,
    left_out: LeftOut | None = None,
) -> list[Path]:
    """List the files under a folder, sorted by relative path; hidden names are skipped, links followed once.

    Args:
        accepts: whether to list a file of this name.
        onerror: called with the error of a folder that cannot be read.
        left_out: counts the other files.
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
        shown = [name for name in files if not name.startswith(".")]
        found += [Path(current, name) for name in shown if accepts(name)]
        if left_out is not None:
            left_out.add(name for name in shown if not accepts(name))
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())
