"""Colour of image files: how it is described, and its conversion to sRGB.

A description is looked for in this order (PNG, third edition, clause 4.3; other formats have a part of it):
CICP codes (PNG `cICP`, the `nclx` box of AVIF and HEIC, the `cicp` tag of an ICC profile), an ICC profile,
the PNG chunk `sRGB`, PNG `gAMA` and `cHRM`, EXIF's "R03" (Adobe RGB). Without one, an image is sRGB.

ICC profiles are converted by LittleCMS (Pillow's ImageCms), everything else by the formulas below. Intent:
relative colorimetric with black point compensation. Colours inside sRGB keep their values, white becomes 255
and black 0 for every profile; sRGB, the target, is a matrix profile without a gamut mapping of its own, so
"perceptual" could only choose another table of the source, whose gamut mapping was made for another target.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from PIL import Image

from glc.data.images.conversion import (
    ADOBE_RGB,
    D65,
    SRGB,
    Encoding,
    Primaries,
    encoding_to_srgb,
    rgb_to_srgb,
)

# ITU-T H.273, tables 2 and 3; those that Pillow's formats are found with.
_PRIMARIES: dict[int, tuple[str, Primaries]] = {
    1: ("BT.709", SRGB),
    4: ("BT.470 M", (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08)),
    5: ("BT.601 625", (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06)),
    6: ("BT.601 525", (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070)),
    9: ("BT.2020", (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046)),
    11: ("DCI-P3", (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)),
    12: ("Display P3", (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)),
}
_TRANSFERS: dict[int, tuple[str, float | str]] = {
    # The camera curves of BT.709, 601 and 2020: their images are made on, and for, sRGB displays.
    **dict.fromkeys((1, 6, 14, 15), ("BT.709", "srgb")),
    4: ("gamma 2.2", 2.2),
    5: ("gamma 2.8", 2.8),
    8: ("linear", 1.0),
    13: ("sRGB", "srgb"),
    16: ("PQ", "pq"),
    18: ("HLG", "hlg"),
}
_UNSPECIFIED = 2


class UnsupportedColour(ValueError):
    """An image has a colour description that cannot be converted; the message says which and what to do."""


@dataclass(frozen=True)
class Colour:
    """The colour of an image file, and what reading does about it."""

    source: str = "none, taken as sRGB"
    """The description that the file has."""
    treatment: str = "unchanged"
    """What is done with the values."""
    problem: str = ""
    """Why a description was not used; the values are then taken as sRGB."""
    encoding: Encoding | None = None
    profile: bytes | None = None

    @property
    def converts(self) -> bool:
        """Whether pixel values change."""
        return self.encoding is not None or self.profile is not None

    def to_srgb(self, image: Image.Image, levels: np.ndarray | None = None) -> Image.Image:
        """Convert an image without alpha to sRGB, mode RGB.

        Args:
            image: 8 bits per channel; mode L, RGB, CMYK, or one that Pillow converts to RGB.
            levels: its values `[H, W, 3]` with 16 bits, if it has as many; used where it makes a difference.
        """
        if self.encoding is not None:
            values = np.asarray(image.convert("RGB")) if levels is None else levels
            return Image.fromarray(encoding_to_srgb(values, self.encoding))
        if self.profile is not None:
            image = _for_profile(image, _space(self.profile))
            transform = _transform(self.profile, image.mode)
            if not isinstance(transform, (str, type(None))):
                converted = transform.apply(image)
                assert isinstance(converted, Image.Image)
                return converted
        return image if image.mode == "RGB" else image.convert("RGB")


def colour_of(image: Image.Image, exif: Mapping[int, Any]) -> Colour:
    """Return the colour of an open image; its pixels need not be decoded.

    Args:
        image: its file must still be open for CICP codes of PNG and AVIF to be found.
        exif: its EXIF block, or an empty mapping.

    Raises:
        UnsupportedColour: it has CICP codes that cannot be converted.
    """
    info = image.info
    profile = colour_profile(image)
    codes = _cicp(image) or (_profile_cicp(profile) if profile else None)
    if codes is not None and _UNSPECIFIED not in codes[:2]:
        return _coded(codes)
    if profile:
        return _profiled(image, profile)
    if "icc_profile" in info and image.format in ("PNG", "JPEG", "MPO"):
        # What Pillow makes of a profile that it cannot unpack (PNG), or with parts missing (JPEG).
        return Colour("ICC profile", problem="its ICC profile is damaged")
    if "srgb" in info:
        return Colour("PNG sRGB chunk")
    if "gamma" in info or "chromaticity" in info:
        return _measured(info)
    if _is_adobe_rgb(exif):
        encoding = Encoding(ADOBE_RGB, 563 / 256)
        return Colour("EXIF R03 (Adobe RGB)", "converted to sRGB", encoding=encoding)
    return Colour()


# CICP


def _coded(codes: tuple[int, int, int, int]) -> Colour:
    primaries, transfer, _, full = codes
    label = f"CICP {primaries}/{transfer}"
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS or not full:
        why = "" if full else " in video range"
        raise UnsupportedColour(f"colour {label}{why} is not supported; convert the image to sRGB")
    (first, chromaticities), (second, curve) = _PRIMARIES[primaries], _TRANSFERS[transfer]
    source = f"{label} ({first}, {second})"
    encoding = Encoding(chromaticities, curve)
    if encoding.is_srgb():
        return Colour(source)
    return Colour(
        source, "tone-mapped to sRGB" if encoding.is_hdr else "converted to sRGB", encoding=encoding
    )


def _cicp(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return primaries, transfer, matrix and range of a PNG's cICP chunk or of an AVIF's or HEIC's nclx box.

    Pillow 13.0 reads neither.
    """
    nclx = image.info.get("nclx_profile")  # pillow-heif
    if isinstance(nclx, Mapping):
        keys = ("color_primaries", "transfer_characteristics", "matrix_coefficients", "full_range_flag")
        primaries, transfer, matrix, _ = (int(nclx.get(key, _UNSPECIFIED)) for key in keys)
        return primaries, transfer, matrix, 1  # the decoder has expanded the range
    file = getattr(image, "fp", None)
    if file is None or image.format not in ("PNG", "AVIF"):
        return None
    before = file.tell()
    try:
        return _png_cicp(file) if image.format == "PNG" else _avif_nclx(file)
    finally:
        file.seek(before)


def _png_cicp(file: Any) -> tuple[int, int, int, int] | None:
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"cICP" and length == 4:
            primaries, transfer, matrix, full = file.read(4)
            return primaries, transfer, matrix, full
        if kind in (b"IDAT", b"IEND"):
            break
        file.seek(length + 4, io.SEEK_CUR)
    return None


def _avif_nclx(file: Any) -> tuple[int, int, int, int] | None:
    file.seek(0)
    head = file.read(1 << 16)  # the meta box precedes the samples
    at = head.find(b"colrnclx")
    if at < 0 or len(head) < at + 15:
        return None
    primaries, transfer, matrix = struct.unpack(">3H", head[at + 8 : at + 14])
    return primaries, transfer, matrix, 1  # the decoder has expanded the range


def colour_profile(image: Image.Image) -> bytes | None:
    """Return an open image's ICC profile."""
    profile = image.info.get("icc_profile") or _embedded_profile(image)
    return bytes(profile) if profile else None


def _embedded_profile(image: Image.Image) -> bytes | None:
    """Return the ICC profile of a JPEG 2000 or BMP file, which Pillow 13.0 does not read."""
    file = getattr(image, "fp", None)
    if file is None or image.format not in ("JPEG2000", "BMP"):
        return None
    before = file.tell()
    try:
        file.seek(0)
        head = file.read(1 << 16)
        if image.format == "BMP":  # a BITMAPV5HEADER (124 bytes) with bV5CSType PROFILE_EMBEDDED
            if head[14:18] != b"\x7c\0\0\0" or head[70:74] != b"DEBM":
                return None
            start, size = struct.unpack("<2I", head[126:134])
            file.seek(14 + start)
            return bytes(file.read(size))
        at = head.find(b"colr")  # box colr of ISO 15444-1; methods 2 and 3 have a profile
        if at < 4 or head[:4] != b"\0\0\0\x0c" or head[at + 4 : at + 5] not in (b"\2", b"\3"):
            return None
        (size,) = struct.unpack(">I", head[at - 4 : at])
        file.seek(at + 7)
        return bytes(file.read(size - 11))
    finally:
        file.seek(before)


def _profile_cicp(profile: bytes) -> tuple[int, int, int, int] | None:
    """Return the codes of an ICC profile's `cicp` tag (ICC.1:2022, 9.2.17) if they are of an HDR image."""
    tag = profile_tags(profile).get(b"cicp", b"")
    if len(tag) < 12 or tag[9] not in (16, 18):
        return None
    return tag[8], tag[9], tag[10], tag[11]


def profile_tags(profile: bytes) -> dict[bytes, bytes]:
    """Return the tags of an ICC profile; those that its tag table has complete entries for."""
    if len(profile) < 132:
        return {}
    (count,) = struct.unpack(">I", profile[128:132])
    table = profile[132 : 132 + 12 * min(count, 1000)]
    entries = struct.iter_unpack(">4s2I", table[: len(table) // 12 * 12])
    return {name: profile[start : start + size] for name, start, size in entries}


# ICC profiles


def _profiled(image: Image.Image, profile: bytes) -> Colour:
    space = _space(profile)
    source = f"ICC profile {_description(profile)}".rstrip()
    fits = [image.mode if image.mode in ("CMYK", "LAB") else "RGB"]
    if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"):
        fits.append("GRAY")
    if space not in fits:
        of = f"for {space or 'unknown'} values, the image has {image.mode}"
        return Colour(source, problem=f"its ICC profile is {of}")
    if space == "LAB":
        return Colour(source, "converted to sRGB")
    mode = {"GRAY": "L"}.get(space, space)
    transform = _transform(profile, mode)
    if isinstance(transform, str):
        return Colour(source, problem=f"its ICC profile cannot be used ({transform})")
    if transform is None:
        return Colour(source)
    return Colour(source, "converted to sRGB", profile=profile)


def _space(profile: bytes) -> str:
    return profile[16:20].decode("latin-1").strip().upper()


def _for_profile(image: Image.Image, space: str) -> Image.Image:
    mode = {"GRAY": "L"}.get(space, space)
    return image if image.mode == mode else image.convert(mode)


@lru_cache(64)
def _description(profile: bytes) -> str:
    from PIL import ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return " ".join(ImageCms.getProfileDescription(opened).split())[:80]
    except Exception:  # a name is not worth an error
        return ""


@lru_cache(64)
def _transform(profile: bytes, mode: str) -> Any:
    """Return the transform from a profile to sRGB, None if it changes nothing, or why there is none.

    A profile is sRGB if no value of a grid changes by more than one level: there are many versions of sRGB's,
    with different names.
    """
    try:
        from PIL import ImageCms

        made = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "CMYK":
            return made
        probe = _probe() if mode == "RGB" else _probe().convert("L")
        before = np.asarray(probe.convert("RGB"), np.int16)
        after = np.asarray(made.apply(probe), np.int16)
    except Exception as error:  # damaged profiles, or a Pillow without LittleCMS
        return " ".join(str(error).split()) or type(error).__name__
    return None if np.abs(before - after).max() <= 1 else made


@cache
def _probe() -> Image.Image:
    steps = np.linspace(0, 255, 16).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 256, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    return Image.fromarray(np.concatenate([grid, greys]))


def srgb_to_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert an sRGB image to an RGB profile, which is embedded; None if the profile does not allow it."""
    if _space(profile) != "RGB" or isinstance(transform := _transform(profile, "RGB"), str):
        return None
    from PIL import ImageCms

    if transform is not None:
        try:
            opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
            srgb = ImageCms.createProfile("sRGB")
            back = ImageCms.buildTransform(srgb, opened, "RGB", "RGB", intent, flags).apply(image)
        except Exception:  # a profile for one direction only
            return None
        assert isinstance(back, Image.Image)
        image = back
    else:
        image = image.copy()
    image.info = {"icc_profile": profile}
    return image


# Numbers


def _measured(info: Mapping[Any, Any]) -> Colour:
    """Return the colour that PNG's gAMA and cHRM describe."""
    gamma, chromaticity = info.get("gamma"), info.get("chromaticity")
    parts = [f"gAMA {gamma:.5f}"] * (gamma is not None) + ["cHRM"] * (chromaticity is not None)
    source = f"PNG {' and '.join(parts)}"
    try:
        transfer: float | str = "srgb" if gamma is None else 1 / gamma
        encoding = Encoding(SRGB if chromaticity is None else tuple(chromaticity), transfer)
        if not isinstance(transfer, str) and not 0.1 < transfer < 10:
            raise ZeroDivisionError
        if encoding.is_srgb():
            return Colour(source)
        rgb_to_srgb(encoding.primaries)
    except (ZeroDivisionError, np.linalg.LinAlgError):
        return Colour(source, problem=f"its {' and '.join(parts)} cannot be right")
    return Colour(source, "converted to sRGB", encoding=encoding)


def _is_adobe_rgb(exif: Mapping[int, Any]) -> bool:
    get_ifd = getattr(exif, "get_ifd", None)
    if get_ifd is None or 0x8769 not in exif:
        return False
    try:
        return str(get_ifd(0xA005).get(1, "")).strip("\0 ") == "R03"
    except Exception:  # a corrupt block
        return False
