"""Image files as users have them, made here, with the sRGB pixels that they must be read as.

The expected pixels are computed from published numbers (chromaticities, curves), never with ImageCms.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
WHITE_D65, WHITE_D50 = np.array([0.95045593, 1, 1.08905775]), np.array([0.9642, 1, 0.8249])
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
REC2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
ADOBE_GAMMA = 563 / 256


def colours() -> np.ndarray:
    """A chart `[32, 48, 3]` of 24 flat patches of 8 x 8: JPEG keeps it within one level."""
    rng = np.random.default_rng(7)
    patches = rng.integers(30, 226, (4, 6, 3))
    patches[0, :3] = ((255, 255, 255), (0, 0, 0), (128, 128, 128))
    return patches.repeat(8, 0).repeat(8, 1).astype(np.uint8)


CHART = colours()
GREY = CHART[..., 0]


def decode_srgb(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def encode_srgb(light: np.ndarray) -> np.ndarray:
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Linear RGB with white D65 to XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    return columns * (np.linalg.inv(columns) @ WHITE_D65)


def from_linear(light: np.ndarray, primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    return encode_srgb(light @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T)


def pq(light: np.ndarray) -> np.ndarray:
    """cd/m2 to the PQ signal, SMPTE ST 2084."""
    p = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * p) / (1 + 18.6875 * p)) ** 78.84375


def pq_inverse(v: np.ndarray) -> np.ndarray:
    p = v ** (1 / 78.84375)
    return 10000 * (np.maximum(p - 0.8359375, 0) / (18.8515625 - 18.6875 * p)) ** (1 / 0.1593017578125)


def tone_mapped(nits: np.ndarray) -> np.ndarray:
    """cd/m2 `[..., 3]` of BT.709 primaries to 8-bit sRGB, by BT.2390 from 1000 to 203 cd/m2."""
    nits = np.maximum(nits, 0)
    out = np.empty(nits.shape)
    for index in np.ndindex(nits.shape[:-1]):
        top = nits[index].max()
        e, limit = (
            min(pq(np.array(top)) / pq(np.array(1000.0)), 1),
            pq(np.array(203.0)) / pq(np.array(1000.0)),
        )
        knee = 1.5 * limit - 0.5
        if e > knee:
            t = (e - knee) / (1 - knee)
            e = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee)
            e += (3 * t**2 - 2 * t**3) * limit
            out[index] = nits[index] * pq_inverse(e * pq(np.array(1000.0))) / top
        else:
            out[index] = nits[index]
    return encode_srgb(out / 203)


# ICC profiles, ICC.1:2001


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def curve(gamma: float | None) -> bytes:
    """A curve: a power law, or sRGB's as parametric type 3."""
    if gamma is not None:
        return b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))
    return b"para" + struct.pack(">IHH", 0, 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    name = b"made by hand\0"
    text = b"desc" + struct.pack(">II", 0, len(name)) + name + bytes(78)
    tags = {b"desc": text, b"wtpt": b"XYZ " + bytes(4) + fixed(*WHITE_D50), **tags}
    at, table, body = 132 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", tag, at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, kind, space, pcs)
    head += bytes(12) + b"acsp" + bytes(28) + fixed(*WHITE_D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(primaries: tuple[tuple[float, float], ...], gamma: float | None) -> bytes:
    cones = (BRADFORD @ WHITE_D50) / (BRADFORD @ WHITE_D65)
    adapted = np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ to_xyz(primaries)
    tags = {}
    for i, letter in enumerate(b"rgb"):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*adapted[:, i])
        tags[bytes([letter]) + b"TRC"] = curve(gamma)
    return profile(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": curve(gamma)})


INKS = np.array([[0.9, 0.15, 0.1], [0.15, 0.8, 0.2], [0.1, 0.12, 0.85], [0.9, 0.9, 0.9]])
"""How much of linear R, G and B each of the inks C, M, Y and K takes away in our press."""


def press(inks: np.ndarray) -> np.ndarray:
    """Linear sRGB of inks `[..., 4]`, 0 or 1."""
    return np.prod(1 - inks[..., None] * INKS, axis=-2)


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE Lab (D50) of linear sRGB."""
    cones = (BRADFORD @ WHITE_D50) / (BRADFORD @ WHITE_D65)
    xyz = linear @ (np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ to_xyz(SRGB)).T / WHITE_D50
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def cmyk_profile() -> bytes:
    """A press with a table of its 16 corners (lut8Type)."""
    corners = np.array(list(np.ndindex(2, 2, 2, 2)), float)
    found = lab(press(corners))
    levels = np.rint(found * (2.55, 1, 1) + (0, 128, 128)).astype(np.uint8)
    ramp = bytes(range(256))
    table = b"mft1" + struct.pack(">IBBBB", 0, 4, 3, 2, 0) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return profile(b"CMYK", {b"A2B0": table + ramp * 4 + levels.tobytes() + ramp * 3}, b"prtr", b"Lab ")


# Files


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: np.ndarray, *extra: bytes, interlaced: bool = False) -> bytes:
    """A PNG of `[H, W]` or `[H, W, 3 or 4]`, uint8 or uint16, with chunks before the pixels."""
    height, width = values.shape[:2]
    bits, kind = 8 * values.itemsize, {2: 0, 3: {3: 2, 4: 6}.get(values.shape[-1], 0)}[values.ndim]
    big = values.astype(values.dtype.newbyteorder(">"))
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first row and column, steps
        passes = [
            (0, 0, 8, 8),
            (0, 4, 8, 8),
            (4, 0, 8, 4),
            (0, 2, 4, 4),
            (2, 0, 4, 2),
            (0, 1, 2, 2),
            (1, 0, 2, 1),
        ]
    parts = [big[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def cicp(primaries: int, transfer: int, full: int = 1) -> bytes:
    return chunk(b"cICP", bytes([primaries, transfer, 0, full]))


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100000)))


def chrm(primaries: tuple[tuple[float, float], ...]) -> bytes:
    numbers = [0.3127, 0.3290, *(number for pair in primaries for number in pair)]
    return chunk(b"cHRM", struct.pack(">8I", *(round(number * 100000) for number in numbers)))


def saved(values: np.ndarray | Image.Image, form: str, mode: str | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values, mode)
    image.save(stream, form, **options)
    return stream.getvalue()


jpeg = partial(saved, form="JPEG", quality=100, subsampling=0)


def exif(orientation: int = 1, interoperability: str = "") -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010F] = "Camera"
    if interoperability:
        block.get_ifd(0x8769)[0xA005] = {1: interoperability}
    return block.tobytes()


def tiff16(values: np.ndarray, planar: bool, order: str) -> bytes:
    """An uncompressed TIFF of `[H, W, 3]` uint16."""
    height, width = values.shape[:2]
    data = (values.transpose(2, 0, 1) if planar else values).astype(f"{order}u2").tobytes()
    strips = 3 if planar else 1
    entries = [(256, 4, [width]), (257, 4, [height]), (258, 3, [16] * 3), (259, 3, [1]), (262, 3, [2])]
    entries += [(273, 4, [0] * strips), (277, 3, [3]), (278, 4, [height])]
    entries += [(279, 4, [len(data) // strips] * strips), (284, 3, [2 if planar else 1])]
    start = 8 + 2 + 12 * len(entries) + 4
    long, ifd = b"", struct.pack(f"{order}H", len(entries))
    sizes = {tag: struct.calcsize("H" if kind == 3 else "I") * len(numbers) for tag, kind, numbers in entries}
    body = start + sum(size for size in sizes.values() if size > 4)
    for tag, kind, numbers in entries:
        if tag == 273:
            numbers = [body + i * len(data) // strips for i in range(strips)]
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            place, long = struct.pack(f"{order}I", start + len(long)), long + packed
        else:
            place = packed.ljust(4, b"\0")
        ifd += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + place
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}I", 8) + ifd + bytes(4) + long + data


def bmp5(values: np.ndarray, embedded: bytes) -> bytes:
    """A BMP with a BITMAPV5HEADER and an ICC profile."""
    height, width = values.shape[:2]
    rows = values[::-1, :, ::-1].tobytes()  # the width is a multiple of 4
    start = 14 + 124
    head = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 24, 0, len(rows), 0, 0, 0, 0)
    head += bytes(16) + b"DEBM" + bytes(36 + 12) + struct.pack("<IIII", 4, 124 + len(rows), len(embedded), 0)
    return (
        b"BM" + struct.pack("<IHHI", start + len(rows) + len(embedded), 0, 0, start) + head + rows + embedded
    )


def jp2(values: np.ndarray, embedded: bytes) -> bytes:
    """A JPEG 2000 file with an ICC profile: the box colr of Pillow's file replaced."""
    data = saved(values, "JPEG2000", irreversible=False)
    at = data.index(b"colr") - 4
    box = struct.pack(">I", 11 + len(embedded)) + b"colr\2\0\0" + embedded
    head = data.index(b"jp2h") - 4
    (size,) = struct.unpack(">I", data[head : head + 4])
    grown = struct.pack(">I", size + len(box) - 15)
    return data[:head] + grown + data[head + 4 : at] + box + data[at + 15 :]


def avif_coded(values: np.ndarray, primaries: int, transfer: int) -> bytes:
    """An AVIF whose nclx box names other codes."""
    data = bytearray(saved(values, "AVIF", quality=100, subsampling="4:4:4"))
    at = data.index(b"colrnclx") + 8
    data[at : at + 4] = struct.pack(">HH", primaries, transfer)
    return bytes(data)


@dataclass(frozen=True)
class Oddity:
    """A file, what it must be read as, and what is said about it."""

    name: str
    data: bytes
    expected: np.ndarray | None = None
    """Levels `[H, W, 3]`, not rounded; None: the file is refused."""
    tolerance: float = 0.51
    """Greatest difference, in levels."""
    treatment: str = ""
    """Part of what `glc info` and evaluations say."""
    named: bool = False
    """Whether the treatment is named when the file is read."""


def grey3(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, float)[..., None], 3, axis=2)


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@cache
def oddities() -> dict[str, Oddity]:
    """The set, by file name."""
    found = [*_colour(), *_hdr(), *_formats(), *_turned(), *_refused()]
    assert len({Path(oddity.name).stem for oddity in found}) == len(found) >= 30
    return {oddity.name: oddity for oddity in found}


def _colour() -> list[Oddity]:
    v = CHART / 255
    p3, adobe = rgb_profile(P3, None), rgb_profile(ADOBE, ADOBE_GAMMA)
    in_p3, in_adobe = from_linear(decode_srgb(v), P3), from_linear(v**ADOBE_GAMMA, ADOBE)
    alpha = np.where(np.arange(48) < 24, 255, 102).astype(np.uint8)[None].repeat(32, 0)
    inks = np.array(list(np.ndindex(2, 2, 2, 2)), np.uint8).reshape(2, 8, 4).repeat(8, 0).repeat(8, 1)
    linear8 = np.rint(255 * v**2).astype(np.uint8)  # levels of a file with linear values
    chart16 = CHART.astype(np.uint16) * 257 // 3 + 77
    best = {"quality": 100, "subsampling": "4:4:4"}
    said, lost = "converted to sRGB", "read as sRGB"
    srgb = rgb_profile(SRGB, None)
    return [
        Oddity("phone.jpg", jpeg(CHART, icc_profile=p3), in_p3, 4, said),
        Oddity("p3.png", saved(CHART, "PNG", icc_profile=p3), in_p3, 1.01, said),
        Oddity("p3_webp.webp", saved(CHART, "WEBP", lossless=True, icc_profile=p3), in_p3, 1.01, said),
        Oddity("p3_bmp.bmp", bmp5(CHART, p3), in_p3, 1.01, said),
        Oddity("p3_jp2.jp2", jp2(CHART, p3), in_p3, 1.01, said),
        Oddity("p3_avif.avif", saved(CHART, "AVIF", **best, icc_profile=p3), in_p3, 4, said),
        Oddity("adobe.tif", saved(CHART, "TIFF", icc_profile=adobe), in_adobe, 1.01, said),
        Oddity("adobe_r03.jpg", jpeg(CHART, exif=exif(1, "R03")), in_adobe, 3, "R03 (Adobe RGB) converted"),
        Oddity("srgb_profile.png", saved(CHART, "PNG", icc_profile=srgb), CHART, 0),
        Oddity("grey_profile.png", saved(GREY, "PNG", icc_profile=grey_profile(1.8)),
               grey3(encode_srgb((GREY / 255) ** 1.8)), 1.01, said),
        Oddity("grey_in_rgb_profile.tif", saved(GREY, "TIFF", icc_profile=adobe),
               grey3(encode_srgb((GREY / 255) ** ADOBE_GAMMA)), 1.01, said),
        Oddity("cmyk_profile.tif", saved(255 * inks, "TIFF", "CMYK", icc_profile=cmyk_profile()),
               encode_srgb(press(inks)), 3, said),
        Oddity("cmyk.tif", saved(255 * inks, "TIFF", "CMYK"),
               255.0 * (1 - inks[..., :3]) * (1 - inks[..., 3:]), 0, "CMYK without", True),
        Oddity("broken_profile.jpg", jpeg(CHART, icc_profile=p3[:150]), CHART, 2, lost, True),
        Oddity("wrong_profile.png", saved(CHART, "PNG", icc_profile=grey_profile(1.8)), CHART, 0, lost, True),
        Oddity("damaged_iccp.png", png(CHART, chunk(b"iCCP", b"x\0\0damaged")), CHART, 0, lost, True),
        Oddity("gama_linear.png", png(linear8, gama(1)), encode_srgb(linear8 / 255), 0.6, said),
        Oddity("gama_linear16.png", png(chart16, gama(1)), encode_srgb(chart16 / 65535), 0.6, said),
        Oddity("gama_zero.png", png(CHART, gama(0)), CHART, 0, lost, True),
        Oddity("chrm.png", png(CHART, gama(0.45455), chrm(P3)), from_linear(v**2.2, P3), 0.6, said),
        Oddity("cicp_p3.png", png(CHART, cicp(12, 13)), in_p3, 0.6, said),

        Oddity("p3_alpha.png", saved(np.dstack([CHART, alpha]), "PNG", icc_profile=p3),
               255 + (in_p3 - 255) * (alpha[..., None] / 255), 1.6, "transparent", True),
    ]  # fmt: skip


def _hdr() -> list[Oddity]:
    # From 0.05 to 900 cd/m2, some of it beyond the gamut of sRGB.
    nits = np.geomspace(0.05, 900, 48)[None, :, None] * (np.arange(1, 33)[:, None, None] / 32)
    nits = nits * np.array([1, 0.8, 0.6])
    matrix = (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(REC2020)).T
    coded = np.rint(65535 * pq(nits)).astype(np.uint16)
    coded8 = np.rint(255 * pq(nits)).astype(np.uint8)
    want = tone_mapped(pq_inverse(coded / 65535) @ matrix)
    signal = np.linspace(0, 1, 48)[None, :, None] * np.array([1, 0.9, 0.7]) * np.ones((32, 1, 1))
    hlg = np.rint(65535 * signal).astype(np.uint16)
    s = hlg / 65535
    scene = np.where(s <= 0.5, s**2 / 3, (np.exp((s - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    shown = 1000 * scene * np.maximum(luminance, 1e-9)[..., None] ** 0.2
    small = tone_mapped(pq_inverse(coded8 / 255) @ matrix)
    flat = np.full((16, 16, 3), 140, np.uint8)
    said = "tone-mapped to sRGB"
    return [
        Oddity("pq16.png", png(coded, cicp(9, 16)), want, 0.7, said, True),
        Oddity("pq8.png", png(coded8, cicp(9, 16)), small, 0.7, said, True),
        Oddity("hlg16.png", png(hlg, cicp(9, 18)), tone_mapped(shown @ matrix), 0.7, said, True),
        Oddity(
            "pq_avif.avif",
            avif_coded(flat, 9, 16),
            tone_mapped(pq_inverse(flat / 255) @ matrix),
            3,
            said,
            True,
        ),
    ]


def _formats() -> list[Oddity]:
    wide = np.random.default_rng(1).integers(0, 65536, (9, 12, 3), dtype=np.uint16)
    high = wide >> 8  # Pillow keeps the high byte
    reduced = "16 bits per channel reduced to 8"
    palette = Image.fromarray(np.arange(32, dtype=np.uint8).reshape(4, 8) % 3, "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    in_palette = np.array([[255, 0, 0], [255, 255, 255], [0, 0, 255]])[np.arange(32).reshape(4, 8) % 3]
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    red = np.full((6, 8, 3), (255, 0, 0))
    strip = np.random.default_rng(2).integers(0, 256, (5, 3000, 3), dtype=np.uint8)
    bits = np.eye(8, dtype=bool)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" ' \
          b'hdrgm:Version="1.0"/></x:xmpmeta>'  # fmt: skip
    second = Image.fromarray(CHART[::2, ::2])
    moving = {"save_all": True, "append_images": frames[1:]}
    several = {"save_all": True, "append_images": [second]}
    first = "the first of"
    return [
        Oddity("plain.png", saved(CHART, "PNG"), CHART, 0),
        Oddity("interlaced.png", png(CHART, interlaced=True), CHART, 0),
        Oddity("rgb16.png", png(wide), high, 0, reduced),
        Oddity("rgb16_tiff.tif", tiff16(wide, False, "<"), high, 0, reduced),
        Oddity("planar16_little.tif", tiff16(wide, True, "<"), high, 0, reduced),
        Oddity("planar16_big.tif", tiff16(wide, True, ">"), high, 0, reduced),
        Oddity("grey16.png", png(wide[..., 0]), grey3(wide[..., 0] / 257), 0.51, reduced),
        Oddity("float.tif", saved(np.array([[0, 0.25, 1]], np.float32), "TIFF"), grey3([[0, 63.75, 255]])),
        Oddity("one_bit.png", saved(bits, "PNG"), grey3(255.0 * bits), 0),
        Oddity("palette.png", saved(palette, "PNG", transparency=1), in_palette, 0, "transparent", True),
        Oddity("grey_alpha.png", saved(np.dstack([GREY, np.zeros_like(GREY)]), "PNG", "LA"),
               np.full(CHART.shape, 255), 0, "transparent", True),
        Oddity("animated_gif.gif", saved(frames[0], "GIF", **moving), red, 0, first, True),
        Oddity("animated_webp.webp", saved(frames[0], "WEBP", lossless=True, **moving), red, 0, first, True),
        Oddity("animated.png", saved(frames[0], "PNG", **moving), red, 0, first, True),
        Oddity("pages.tif", saved(CHART, "TIFF", **several), CHART, 0, first, True),
        Oddity("mpo.jpg", saved(CHART, "MPO", quality=100, subsampling=0, **several), CHART, 2, first, True),
        Oddity("gain_map.jpg", saved(CHART, "MPO", quality=100, subsampling=0, xmp=xmp, **several), CHART, 2,
               "gain map", True),
        Oddity("one.png", saved(np.full((1, 1, 3), 77, np.uint8), "PNG"), np.full((1, 1, 3), 77), 0),
        Oddity("strip.png", saved(strip, "PNG"), strip, 0),
    ]  # fmt: skip


def _turned() -> list[Oddity]:
    made = []
    for number, turn in TURNS.items():
        made.append(Oddity(f"exif{number}.jpg", jpeg(CHART, exif=exif(number)), turn(CHART), 2))
    made.append(Oddity("exif6_tiff.tif", saved(CHART, "TIFF", exif=exif(6)), TURNS[6](CHART), 0))
    made.append(Oddity("exif6_png.png", saved(CHART, "PNG", exif=exif(6)), TURNS[6](CHART), 0))
    return made


def _refused() -> list[Oddity]:
    return [
        Oddity("video_range.png", png(CHART, cicp(9, 16, full=0)), treatment="video range is not supported"),
        Oddity(
            "log.png",
            png(CHART, cicp(1, 9)),
            treatment="CICP 1/9 is not supported; convert the image to sRGB",
        ),
        Oddity("cut.jpg", jpeg(CHART)[:700], treatment="truncated"),
        Oddity("out_of_range.tif", saved(np.array([[0, 1.5]], np.float32), "TIFF"), treatment="outside 0..1"),
    ]
