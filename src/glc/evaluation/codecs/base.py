"""What an evaluation asks of a codec: bytes for an image at a setting, and the image back from them."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from glc.codec.codec import TargetWarning
from glc.codec.rate_search import TOLERANCE, search
from glc.errors import TargetError


class CodecUnavailable(RuntimeError):
    """An encoder or a decoder is not installed; the message holds the command that installs it."""


@dataclass(frozen=True)
class Setting:
    """One point of a codec: a quality in the codec's own units, or a rate to meet in each image."""

    quality: float | None = None
    target_bpp: float | None = None

    @property
    def label(self) -> str:
        """Name of the setting in tables and folders, such as `q50` or `bpp0.03`."""
        return f"bpp{self.target_bpp:g}" if self.quality is None else f"q{round(self.quality, 2):g}"

    def as_dict(self) -> dict[str, float]:
        """Return what the setting asks for, by name."""
        values = {"quality": self.quality, "target_bpp": self.target_bpp}
        return {name: value for name, value in values.items() if value is not None}


class ImageCodec(ABC):
    """A codec at the settings that an evaluation asks for.

    ```
    image --encode(setting)--> bytes --decode--> image      all that decode needs lies in the bytes
    ```

    Args:
        qualities: in the codec's own units; each is one setting.
        target_bpp: bits per pixel instead: each image's quality is searched so that its file lies at most
            3 % below.

    Raises:
        ValueError: both or neither are given, a value is out of range, or two settings are the same.
        CodecUnavailable: what the codec needs is not installed.
    """

    name: str
    """What tables call it."""
    kind: str
    """Family, such as `glc` or `jpeg`."""
    suffix: str
    """Of its files, with the dot."""
    fingerprint: str | None = None
    """What tells two models of one kind apart, in hexadecimal digits."""
    ladder: Sequence[float]
    """Qualities that a search for a rate may use, from the smallest file to the largest."""

    def __init__(
        self, qualities: Sequence[float] | None = None, target_bpp: Sequence[float] | None = None
    ) -> None:
        if target_bpp:
            self.settings = [Setting(target_bpp=float(bpp)) for bpp in target_bpp]
            if not all(0 < bpp < 1000 for bpp in target_bpp):
                raise ValueError(f"target_bpp={list(target_bpp)}: give positive numbers of bits per pixel")
        elif qualities:
            self.settings = [Setting(quality=quality) for quality in qualities]
            for quality in qualities:
                self.check_quality(quality)
        else:
            raise ValueError(f"{self.kind}: give at least one of qualities and target_bpp")
        labels = [setting.label for setting in self.settings]
        if len(set(labels)) < len(labels):
            raise ValueError(f"{self.kind}: settings are given twice: {', '.join(labels)}")

    def check_quality(self, quality: float) -> None:
        """Refuse a quality that the codec does not have.

        Raises:
            ValueError: it is out of range; the message says what the range is.
        """
        low, high = min(self.ladder), max(self.ladder)
        if not low <= quality <= high:
            raise ValueError(f"{self.kind}: qualities lie from {low:g} to {high:g}, not at {quality:g}")

    def encode(self, image: Image.Image, setting: Setting) -> bytes:
        """Return the file of an image, mode RGB.

        Raises:
            TargetError: the smallest file is larger than the rate asked for.
            RuntimeError: the encoder failed.

        Warns:
            TargetWarning: the file stays more than 3 % below the rate asked for.
        """
        if setting.quality is not None:
            return self.encode_at(image, setting.quality)
        assert setting.target_bpp is not None
        return self._search(image, setting.target_bpp)

    def _search(self, image: Image.Image, target_bpp: float) -> bytes:
        made: dict[int, bytes] = {}

        def size_of(step: int) -> int:
            made[step] = self.encode_at(image, self.ladder[step])
            return len(made[step])

        pixels = image.width * image.height
        target = int(target_bpp * pixels / 8)
        try:
            found = search(size_of, len(self.ladder) - 1, target)
        except TargetError as error:
            least = 8 * len(made[0]) / pixels
            raise TargetError(f"{error} ({least:.4f} bpp, quality {self.ladder[0]:g})") from None
        if len(made[found]) < (1 - TOLERANCE) * target:
            bpp = 8 * len(made[found]) / pixels
            warnings.warn(
                f"{bpp:.4f} bpp at quality {self.ladder[found]:g} is the nearest below {target_bpp:g} bpp",
                TargetWarning,
                stacklevel=3,
            )
        return made[found]

    @abstractmethod
    def encode_at(self, image: Image.Image, quality: float) -> bytes:
        """Return the file of an image, mode RGB, at a quality."""

    @abstractmethod
    def decode(self, data: bytes) -> Image.Image:
        """Return the image, mode RGB, that the bytes hold.

        Raises:
            ValueError, RuntimeError: they cannot be decoded.
        """

    @abstractmethod
    def versions(self) -> Mapping[str, str]:
        """Versions of the software that encodes and decodes, by name."""

    def options(self) -> Mapping[str, Any]:
        """How the codec was set up, beside its settings."""
        return {}
