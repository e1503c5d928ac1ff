"""Samples and manifest of a packed data set.

A sample is two members of a shard, `KEY.jpg` or `KEY.png` and `KEY.json` (original name; width and height as
stored). Samples contain no times, owners or process ids, so the same images with the same settings always
give the same bytes. `glc pack` writes the manifest last; readers check shards against it.
"""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from glc.data.images import Treatment, log_treatment, open_image, read_rgb
from glc.data.urls import read_url
from glc.errors import ImageError
from glc.io.names import encode_text

_LOSSY = frozenset({"JPEG", "MPO", "WEBP", "AVIF", "JPEG2000", "HEIF", "JXL"})


@dataclass(frozen=True)
class Entry:
    """An image to pack."""

    key: str
    """Key of its sample."""
    name: str
    """Name stored in the sample."""
    path: str
    end: int
    """Position in its shard, from 1."""


@dataclass(frozen=True)
class Encoding:
    """Settings of a sample: `size` and `min_side` in pixels of the short side, JPEG `quality`, background."""

    size: int | None = None
    min_side: int = 0
    quality: int = 95
    background: str = "white"


def make_key(position: int, name: str) -> str:
    """Key of a sample: its position in the set (so it is unique) and a readable part of its name."""
    stem = Path(name).stem
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_")[:40]
    return f"{position:08d}-{readable}" if readable else f"{position:08d}"


def encode_sample(entry: Entry, encoding: Encoding) -> list[tuple[str, bytes]]:
    """Read an image and return its sample as (file name, content) pairs.

    A plain JPEG (8-bit sRGB, upright, not to be resized) keeps its bytes. Everything else becomes PNG, or,
    when it came from a lossy format, JPEG of the given quality with full-resolution colour. The sample's JSON
    names what reading did to the image, if it did anything.

    Raises:
        ImageError: the image cannot be read, or is smaller than `encoding.min_side`.
    """
    try:
        data = Path(entry.path).read_bytes()
    except OSError as error:
        raise ImageError(f"{entry.name}: {error.strerror or error}") from error
    header = open_image(data, entry.name)
    source_format = header.format
    if min(header.size) < encoding.min_side:
        raise ImageError(f"{entry.name}: short side {min(header.size)} is below {encoding.min_side}")
    done: list[str] = []

    def report(name: str, treatment: Treatment) -> None:
        done.append(treatment.text)
        log_treatment(name, treatment)

    # Decodes all pixels, so that no corrupt file enters a shard.
    image = read_rgb(data, entry.name, background=encoding.background, report=report)
    # A profile of sRGB, or one that is not used, may stay.
    plain = source_format == "JPEG" and header.mode == "RGB" and not done
    resized = _fit_short_side(image, encoding.size)
    lossy = source_format in _LOSSY
    if not plain or resized is not image:
        buffer = io.BytesIO()
        options = {"quality": encoding.quality, "subsampling": 0} if lossy else {}
        resized.save(buffer, "JPEG" if lossy else "PNG", **options)
        data = buffer.getvalue()
    note: dict[str, Any] = {"name": entry.name, "width": resized.width, "height": resized.height}
    if done:
        note["treatment"] = done
    return [
        (f"{entry.key}.{'jpg' if lossy else 'png'}", data),
        (f"{entry.key}.json", encode_text(json.dumps(note, ensure_ascii=False))),
    ]


def _fit_short_side(image: Image.Image, size: int | None) -> Image.Image:
    if size is None or min(image.size) <= size:
        return image
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class PackError(ValueError):
    """Packing cannot start, or a packed set is corrupt; the message names the cause and the fix."""


@dataclass
class ShardRecord:
    """One shard: file name, images in it, bytes, hash; `skipped` has name and reason of omitted images."""

    name: str
    count: int
    bytes: int
    sha256: str
    skipped: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """A packed set: its settings and its shards, in order."""

    name: str
    settings: dict[str, Any]
    shards: list[ShardRecord]

    @property
    def count(self) -> int:
        """Images in all shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Images omitted, in order: dicts with `name` and `reason`."""
        return [image for shard in self.shards for image in shard.skipped]

    def to_json(self) -> str:
        """Text of `manifest.json`."""
        totals = {
            "shards": len(self.shards),
            "count": self.count,
            "bytes": self.bytes,
            "skipped": len(self.skipped),
        }
        content = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "totals": totals,
            "settings": self.settings,
            "shards": [asdict(shard) for shard in self.shards],
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read the `manifest.json` of a folder, or of a URL up to its last slash.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: it cannot be read.
        PackError: it is corrupt, or of a newer format.
    """
    where = f"{(os.fspath(folder) or '.').rstrip('/')}/{MANIFEST}"
    data = read_url(where)
    try:
        content = json.loads(data.decode(errors="replace"))
    except ValueError as error:
        raise PackError(f"{where}: not valid JSON ({error}); remove it and pack again") from error
    if not isinstance(content, dict):
        raise PackError(f"{where}: not a JSON object; remove it and pack again")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise PackError(
            f"{where}: format version is {version}, expected {FORMAT_VERSION}; update glc or pack again"
        )
    try:
        shards = [ShardRecord(**shard) for shard in content["shards"]]
        return Manifest(content["name"], content["settings"], shards)
    except (KeyError, TypeError) as error:
        raise PackError(f"{where}: corrupt ({error!r}); pack again with --force") from error
