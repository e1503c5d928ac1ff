"""Interface of a codec in an evaluation: encode an image at a setting, decode its bytes."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from glc.codec.base import TargetWarning
from glc.codec.rate_search import TOLERANCE, search
from glc.errors import TargetError


class CodecUnavailable(RuntimeError):
    """An encoder or decoder is not installed; the message has the command to install it."""


@dataclass(frozen=True)
class Setting:
    """One rate point: a quality in the codec's own units, or a target rate for each image."""

    quality: float | None = None
    target_bpp: float | None = None

    @property
    def label(self) -> str:
        """Name of the setting in tables and folders, such as `q50` or `bpp0.03`."""
        return f"bpp{self.target_bpp:g}" if self.quality is None else f"q{round(self.quality, 2):g}"

    def as_dict(self) -> dict[str, float]:
        """Return the quality or the target rate by name."""
        values = {"quality": self.quality, "target_bpp": self.target_bpp}
        return {name: value for name, value in values.items() if value is not None}


class ImageCodec(ABC):
    """A codec with its list of settings.

    ```
    image --encode(setting)--> bytes --decode--> image      decoding needs the bytes only
    ```

    Args:
        qualities: in the codec's own units; each is one setting.
        target_bpp: bits per pixel instead; the quality of each image is searched for a file at most 3 %
            below.

    Raises:
        ValueError: neither is given, a value is out of range, or two settings are equal.
        CodecUnavailable: the codec is not installed.
    """

    name: str
    """Name in tables."""
    kind: str
    """Family, such as `glc` or `jpeg`."""
    suffix: str
    """Suffix of its files, with the dot."""
    fingerprint: str | None = None
    """Identifies the model of a learned codec, in hexadecimal digits."""
    conversion: str
    """Padding and colour conversion of images in and around the codec, for results."""
    ladder: Sequence[float]
    """Qualities that a rate search may use, from the smallest file to the largest; a range: integers only."""

    def __init__(
        self, qualities: Sequence[float] | None = None, target_bpp: Sequence[float] | None = None
    ) -> None:
        if target_bpp:
            self.settings = [Setting(target_bpp=float(bpp)) for bpp in target_bpp]
            if not all(0 < bpp < 1000 for bpp in target_bpp):
                raise ValueError(f"target_bpp={list(target_bpp)}: give positive bits per pixel")
        elif qualities:
            self.settings = [Setting(quality=quality) for quality in qualities]
            for quality in qualities:
                self.check_quality(quality)
        else:
            raise ValueError(f"{self.kind}: give at least one of qualities and target_bpp")
        labels = [setting.label for setting in self.settings]
        if len(set(labels)) < len(labels):
            raise ValueError(f"{self.kind}: duplicate settings: {', '.join(labels)}")

    def check_quality(self, quality: float) -> None:
        """Check that a quality is in the codec's range, and an integer where that is one of integers.

        Raises:
            ValueError: it is not; the message has the range.
        """
        low, high = min(self.ladder), max(self.ladder)
        if not low <= quality <= high:
            raise ValueError(f"{self.kind}: quality {quality:g} is out of range; give {low:g} to {high:g}")
        if isinstance(self.ladder, range) and quality != int(quality):
            raise ValueError(f"{self.kind}: quality {quality:g} is not an integer")

    def encode(self, image: Image.Image, setting: Setting) -> bytes:
        """Return the file of an image, mode RGB.

        Raises:
            TargetError: the smallest file exceeds the target rate.
            RuntimeError: the encoder failed.

        Warns:
            TargetWarning: the file is more than 3 % below the target rate.
        """
        if setting.quality is not None:
            return self.encode_at(image, setting.quality)
        assert setting.target_bpp is not None
        return self._search(image, setting.target_bpp)

    def _search(self, image: Image.Image, target_bpp: float) -> bytes:
        encoded: dict[int, bytes] = {}

        def size_of(step: int) -> int:
            encoded[step] = self.encode_at(image, self.ladder[step])
            return len(encoded[step])

        pixels = image.width * image.height
        target = int(target_bpp * pixels / 8)
        try:
            found = search(size_of, len(self.ladder) - 1, target)
        except TargetError as error:
            least = 8 * len(encoded[0]) / pixels
            raise TargetError(f"{error} ({least:.4f} bpp, quality {self.ladder[0]:g})") from None
        if len(encoded[found]) < (1 - TOLERANCE) * target:
            bpp = 8 * len(encoded[found]) / pixels
            warnings.warn(
                f"{bpp:.4f} bpp at quality {self.ladder[found]:g} is the closest below {target_bpp:g} bpp",
                TargetWarning,
                stacklevel=3,
            )
        return encoded[found]

    @abstractmethod
    def encode_at(self, image: Image.Image, quality: float) -> bytes:
        """Return the file of an image, mode RGB, at a quality."""

    @abstractmethod
    def decode(self, data: bytes) -> Image.Image:
        """Decode a file to an image, mode RGB.

        Raises:
            ValueError, RuntimeError: it cannot be decoded.
        """

    @abstractmethod
    def versions(self) -> Mapping[str, str]:
        """Return the versions of encoder and decoder software, by name."""

    def options(self) -> Mapping[str, Any]:
        """Return the codec's options besides its settings."""
        return {}
