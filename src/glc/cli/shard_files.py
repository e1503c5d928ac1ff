"""What a job of `glc compress --shards` or `glc decompress --shards` does with each file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glc.jobs.worker import FileProcessor, Processed


@dataclass
class Compressor(FileProcessor):
    """Compresses images to `.glc` files."""

    codec: Any
    options: Mapping[str, Any]
    background: str = "white"

    def accepts(self, name: str) -> bool:
        """Whether it is an image."""
        from glc.data.images import is_image_name

        return is_image_name(name)

    def process_file(self, data: bytes, name: str) -> Processed:
        """Compress an image."""
        from glc.data.images import read_rgb

        image = read_rgb(data, name, background=self.background)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missed target is not a failure
            coded = self.codec.compress(image, **self.options)
        return Processed([("glc", coded)], image.width * image.height, len(coded))


@dataclass
class Decompressor(FileProcessor):
    """Decodes `.glc` files to PNG."""

    codecs: Any
    options: Mapping[str, Any]

    def accepts(self, name: str) -> bool:
        """Whether it is a `.glc` file."""
        return os.path.splitext(name)[1].lower() == ".glc"

    def process_file(self, data: bytes, name: str) -> Processed:
        """Decompress a file."""
        from glc.codec.bitstream import unpack
        from glc.data.images import png_bytes

        header, _ = unpack(data, **self.options)
        image = self.codecs.for_file(header).decompress(data, **self.options)
        return Processed([("png", png_bytes(image))], image.width * image.height, len(data))
