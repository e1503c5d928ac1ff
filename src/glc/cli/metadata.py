"""Sidecars of `--keep-metadata`: EXIF block, ICC profile and XMP packet of an image, beside its .glc file.

The format of .glc files has no optional fields, so `photo.glc` stays what it is and `photo.glc.meta` is
written beside it: a PNG of one pixel whose chunks eXIf, iCCP and iTXt hold the blocks, byte for byte, and
whose text `glc-checksum` names the .glc file that they belong to. Every metadata tool reads it.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from glc.data.images import ImageSource, colour_profile, open_image

_CHECKSUM = "glc-checksum"
_XMP = "XML:com.adobe.xmp"
# Of a TIFF's own tags, those that describe it; the others say where its pixels are.
_TIFF_TAGS = (269, 270, 271, 272, 274, 285, 305, 306, 315, 316, 33432, 0x8769, 0x8825)


@dataclass(frozen=True)
class Metadata:
    """The blocks of an image file; empty where there is none."""

    exif: bytes = b""
    profile: bytes = b""
    xmp: bytes = b""

    def __bool__(self) -> bool:
        """Whether there is any block."""
        return bool(self.exif or self.profile or self.xmp)

    @classmethod
    def of(cls, source: ImageSource, name: str) -> Metadata:
        """Read an image's blocks.

        Raises:
            ImageError: it cannot be opened.
        """
        image = open_image(source, name)
        profile = colour_profile(image) or b""
        exif = image.info.get("exif", b"")
        if image.format == "TIFF":
            found, kept = image.getexif(), Image.Exif()
            for tag in _TIFF_TAGS:
                if tag in found and tag in (0x8769, 0x8825):
                    kept.get_ifd(tag).update(found.get_ifd(tag))
                elif tag in found:
                    kept[tag] = found[tag]
            exif = kept.tobytes()
        elif image.format == "PNG" and not exif:
            image.load()  # the chunk may be at the end
            exif = image.info.get("exif", b"")
        xmp = image.info.get("xmp", b"")
        return cls(bytes(exif), profile, xmp.encode() if isinstance(xmp, str) else bytes(xmp))

    def to_bytes(self, coded: bytes) -> bytes:
        """Return the sidecar of a .glc file."""
        options = self.save_options("PNG") | ({"icc_profile": self.profile} if self.profile else {})
        options["pnginfo"].add_text(_CHECKSUM, _checksum(coded))
        stream = io.BytesIO()
        Image.new("RGB", (1, 1)).save(stream, "PNG", **options)
        return stream.getvalue()

    def save_options(self, form: str) -> dict[str, Any]:
        """Return Pillow's options that write EXIF and XMP as PNG, WEBP or TIFF."""
        options: dict[str, Any] = {"exif": self.exif} if self.exif else {}
        if form == "PNG":
            options["pnginfo"] = PngInfo()
            if self.xmp:
                options["pnginfo"].add_itxt(_XMP, self.xmp.decode("utf-8", "replace"), zip=True)
        elif form == "TIFF" and self.xmp:
            block = Image.Exif()
            if self.exif:
                block.load(self.exif)
            block[700] = self.xmp
            options["exif"] = block
        elif self.xmp:
            options["xmp"] = self.xmp
        return options

    @classmethod
    def from_bytes(cls, data: bytes, coded: bytes, name: str) -> Metadata:
        """Read a sidecar.

        Raises:
            ImageError: it is not a PNG.
            ValueError: it belongs to another .glc file.
        """
        image = open_image(data, name)
        image.load()
        if image.info.get(_CHECKSUM) != _checksum(coded):
            raise ValueError(f"{name}: is not the metadata of this file; decode without --keep-metadata")
        xmp = image.info.get(_XMP, "")
        return cls(image.info.get("exif", b""), image.info.get("icc_profile") or b"", str(xmp).encode())

    def for_upright(self) -> Metadata:
        """Return the blocks for a decoded image, which is upright and, unless it has the profile, sRGB.

        Only the values change that would no longer be true: the orientation, and "R03" (Adobe RGB).
        """
        xmp = re.sub(rb"(tiff:Orientation(?:=[\"']|>)\s*)\d", rb"\g<1>1", self.xmp)
        return Metadata(_upright(self.exif), self.profile, xmp)


def _checksum(coded: bytes) -> str:
    # The stored one. (The CRC-32 of data that end with their CRC-32 is the same for all.)
    return coded[-4:].hex()


def _upright(exif: bytes) -> bytes:
    """Set the orientation in an EXIF block to 1, in place, so that nothing else moves."""
    start = 6 if exif.startswith(b"Exif\0\0") else 0
    order = {b"II": "<", b"MM": ">"}.get(exif[start : start + 2])
    if order is None or len(exif) < start + 10:
        return exif
    block = bytearray(exif)
    (first,) = struct.unpack_from(f"{order}I", block, start + 4)
    if start + first + 2 <= len(block):
        (count,) = struct.unpack_from(f"{order}H", block, start + first)
        for at in range(start + first + 2, min(start + first + 2 + 12 * count, len(block) - 11), 12):
            if struct.unpack_from(f"{order}H", block, at) == (0x0112,):
                struct.pack_into(f"{order}H", block, at + 8, 1)
    entry = struct.pack(f"{order}HHI", 1, 2, 4)
    return bytes(block).replace(entry + b"R03\0", entry + b"R98\0")
