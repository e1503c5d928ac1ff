"""Still image codecs of Pillow and its plug-ins: JPEG, WebP, AVIF, JPEG XL."""

import importlib
import importlib.metadata
import io
from collections.abc import Mapping, Sequence
from typing import Any

import PIL
from PIL import Image, features

from glc.evaluation.codecs.base import CodecUnavailable, ImageCodec

QUALITIES = {
    "JPEG": (1, 95),  # above, libjpeg grows files without a visible gain
    "WEBP": (0, 100),
    "AVIF": (0, 100),
    "JXL": (0, 99),  # 100 is an error in pillow-jxl-plugin (findings/jpegxl_quality_100.sh)
}
"""Smallest and largest quality of each format, in Pillow's units: the limits of a rate search."""

CONVERSIONS = {
    "JPEG": "YCbCr 4:2:0, BT.601, full range, by its own encoder",
    "WEBP": "YCbCr 4:2:0, BT.601, limited range, by its own encoder",
    "AVIF": "YCbCr 4:2:0, BT.601, full range, 8 bits, by its own encoder",
    "JXL": "XYB by its own encoder",
}
"""What the formats' encoders do with RGB as Pillow calls them."""


class StillCodec(ImageCodec):
    """A format that Pillow reads and writes.

    Args:
        format: Pillow's name, `JPEG`, `WEBP`, `AVIF` or `JXL`.
        suffix: suffix of the files.
        save: encoder options besides the quality, including numbers of threads.
        lowest: smallest quality; None: the format's.
        highest: largest quality; None: the format's, which its encoder accepts.
        plugin: module that adds the format to Pillow, if it is not Pillow's own.
        install: the command that installs the format.
        name: name in tables; the format by default.
        qualities: integers from `lowest` to `highest`.
        target_bpp: bits per pixel instead.

    Raises:
        CodecUnavailable: the format is not installed.
        ValueError: a quality is out of range.
    """

    def __init__(
        self,
        format: str,
        suffix: str,
        save: Mapping[str, Any] | None = None,
        lowest: int | None = None,
        highest: int | None = None,
        plugin: str | None = None,
        install: str = "pip install 'pillow>=11.3'",
        name: str | None = None,
        qualities: Sequence[float] | None = None,
        target_bpp: Sequence[float] | None = None,
    ) -> None:
        self.format, self.suffix, self.save = format, suffix, dict(save or {})
        self.name = self.kind = name or format.lower()
        low, high = QUALITIES.get(format, (0, 100))
        self.ladder = range(low if lowest is None else lowest, (high if highest is None else highest) + 1)
        self.conversion = f"8-bit RGB, not padded; {CONVERSIONS.get(format, 'converted by its own encoder')}"
        self.plugin = plugin
        if plugin is not None:
            try:
                importlib.import_module(plugin)
            except ImportError as error:
                raise CodecUnavailable(f"{self.kind}: {plugin} is not installed; run {install}") from error
        Image.init()
        if format not in Image.SAVE or format not in Image.OPEN:
            raise CodecUnavailable(
                f"{self.kind}: Pillow {PIL.__version__} does not support {format}; run {install}"
            )
        super().__init__(qualities, target_bpp)

    def encode_at(self, image: Image.Image, quality: float) -> bytes:
        """Return the file of an image."""
        stream = io.BytesIO()
        # A new image, so that ICC profiles and EXIF of the source are not written.
        plain = Image.frombytes("RGB", image.size, image.tobytes())
        plain.save(stream, self.format, quality=int(quality), **self.save)
        return stream.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        """Decode a file.

        Raises:
            ValueError, OSError: it cannot be decoded.
        """
        with Image.open(io.BytesIO(data), formats=[self.format]) as opened:
            return opened.convert("RGB")

    def versions(self) -> Mapping[str, str]:
        """Return the versions of Pillow, its library and the plug-in."""
        found = {"pillow": PIL.__version__}
        library = {"JPEG": "jpg", "WEBP": "webp", "AVIF": "avif"}.get(self.format)
        if library is not None:
            found[library] = str(features.version(library))
        if self.plugin is not None:
            package = importlib.metadata.packages_distributions().get(self.plugin, [self.plugin])[0]
            found[package] = importlib.metadata.version(package)
        return found

    def options(self) -> Mapping[str, Any]:
        """Return the encoder's options."""
        return self.save
