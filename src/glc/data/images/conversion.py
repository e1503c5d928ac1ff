"""Conversion to sRGB of colour that is given by numbers: primaries and a transfer curve.

HDR (PQ and HLG) is tone-mapped: light relative to the reference white of 203 cd/m2 (ITU-R BT.2408), sRGB's
primaries, then the curve of ITU-R BT.2390 (annex 5) from a peak of 1000 cd/m2 to the reference white, applied
to the largest channel, so that hues are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

Primaries = tuple[float, float, float, float, float, float, float, float]
"""Chromaticities x, y of white, red, green and blue."""

D65 = (0.3127, 0.3290)
SRGB: Primaries = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_RGB: Primaries = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)

PEAK = 1000.0
"""Peak luminance in cd/m2 that HDR images are assumed to be mastered for; brighter light is clipped."""
WHITE = 203.0
"""Luminance in cd/m2 of diffuse white in HDR images (ITU-R BT.2408), which becomes white in sRGB."""
_CHUNK = 1 << 19  # pixels converted at a time


@dataclass(frozen=True)
class Encoding:
    """Colour given by numbers: primaries, and "srgb", "pq", "hlg" or the exponent of a power law."""

    primaries: Primaries = SRGB
    transfer: float | str = "srgb"

    @property
    def is_hdr(self) -> bool:
        """Whether it is PQ or HLG."""
        return self.transfer in ("pq", "hlg")

    def is_srgb(self) -> bool:
        """Whether it is sRGB within the tolerances of libpng: 0.001 in x and y, 5 % in gamma."""
        same = all(abs(a - b) <= 1e-3 for a, b in zip(self.primaries, SRGB, strict=True))
        return same and (
            self.transfer == "srgb"
            or (not isinstance(self.transfer, str) and abs(self.transfer / 2.2 - 1) <= 0.05)
        )


@lru_cache(64)
def rgb_to_srgb(primaries: Primaries) -> np.ndarray:
    """Return the matrix `[3, 3]` from linear RGB of the given primaries to linear sRGB; white stays white.

    Raises:
        ZeroDivisionError, numpy.linalg.LinAlgError: the primaries span no colour space.
    """
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    def to_xyz(given: Primaries) -> np.ndarray:
        colours = np.stack([xyz(*given[i : i + 2]) for i in (2, 4, 6)], 1)
        return colours * np.linalg.solve(colours, xyz(*given[:2]))

    cones = [bradford @ xyz(*white[:2]) for white in (primaries, SRGB)]
    adapt = np.linalg.inv(bradford) @ np.diag(cones[1] / cones[0]) @ bradford
    return np.linalg.solve(to_xyz(SRGB), adapt @ to_xyz(primaries))


def encoding_to_srgb(values: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Convert values `[H, W, 3]`, uint8 or uint16, to 8-bit sRGB; HDR is tone-mapped, see the module."""
    table = _linear(encoding.transfer, np.iinfo(values.dtype).max)
    matrix = rgb_to_srgb(encoding.primaries).T.astype(np.float32)
    identity = np.allclose(matrix, np.eye(3), atol=1e-6)
    luminance = _luminance(encoding.primaries)
    out = np.empty(values.shape, np.uint8)
    rows = max(1, _CHUNK // values.shape[1])
    for top in range(0, len(values), rows):
        light = table[values[top : top + rows]]
        if encoding.transfer == "hlg":
            # The OOTF of BT.2100 at a peak of 1000 cd/m2: gamma 1.2 of the scene's luminance.
            light *= np.power(np.maximum(light @ luminance, 1e-9), np.float32(0.2))[..., None]
        if encoding.is_hdr:
            light *= np.float32((PEAK if encoding.transfer == "hlg" else 1) / WHITE)
        if not identity:
            light = light @ matrix
        if encoding.is_hdr:
            light = _tone_mapped(light)
        out[top : top + rows] = _srgb_levels()[np.rint(np.clip(light, 0, 1) * 65535).astype(np.uint16)]
    return out


@lru_cache(8)
def _linear(transfer: float | str, top: int) -> np.ndarray:
    """Return the light of each level 0..top: 1 is white; cd/m2 for PQ; scene light up to 1 for HLG."""
    v = np.arange(top + 1) / top
    if transfer == "pq":
        light = pq_to_light(v)
    elif transfer == "hlg":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(v <= 0.5, v**2 / 3, (np.exp((v - c) / a) + b) / 12)
    elif transfer == "srgb":
        light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    else:
        light = v ** float(transfer)
    return light.astype(np.float32)


@cache
def _srgb_levels() -> np.ndarray:
    """Return the 8-bit sRGB level of each linear value 0..65535; the steps are at most 0.05 levels."""
    v = np.arange(65536) / 65535
    curve = np.where(v <= 0.0031308, v * 12.92, 1.055 * np.power(v, 1 / 2.4) - 0.055)
    return np.rint(255 * curve).astype(np.uint8)


@lru_cache(64)
def _luminance(primaries: Primaries) -> np.ndarray:
    x, y = np.array(primaries[2::2]), np.array(primaries[3::2])
    colours = np.stack([x / y, np.ones(3), (1 - x - y) / y])
    white = np.array([primaries[0], primaries[1], 1 - primaries[0] - primaries[1]]) / primaries[1]
    return np.linalg.solve(colours, white).astype(np.float32)


def _tone_mapped(light: np.ndarray) -> np.ndarray:
    """Map light relative to the reference white so that the largest channel is at most 1."""
    light = np.maximum(light, 0)
    largest = np.maximum(light.max(-1, keepdims=True), 1e-9)
    peak = float(light_to_pq(np.array(PEAK)))
    top = float(light_to_pq(np.array(WHITE))) / peak
    knee = 1.5 * top - 0.5
    e = np.minimum(light_to_pq(largest * WHITE) / peak, 1)
    t = np.maximum(e - knee, 0) / (1 - knee)
    curve = (
        (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * top
    )
    mapped = pq_to_light(np.where(e < knee, e, curve) * peak) / WHITE
    return light * np.where(e < knee, 1, mapped / largest)


_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128


def pq_to_light(v: np.ndarray) -> np.ndarray:
    """Map PQ signals in 0..1 to cd/m2 (SMPTE ST 2084)."""
    p = np.power(v, 1 / _M2)
    return 10000 * np.power(np.maximum(p - _C1, 0) / (_C2 - _C3 * p), 1 / _M1)


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """Map cd/m2 to PQ signals in 0..1; the inverse of `pq_to_light`."""
    p = np.power(np.maximum(light, 0) / 10000, _M1)
    return np.power((_C1 + _C2 * p) / (1 + _C3 * p), _M2)
