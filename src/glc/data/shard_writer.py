"""Writing one shard: pictures in, a tar file with fixed bytes out.

A sample is two members, `KEY.jpg` or `KEY.png` and `KEY.json` (original name; width and height as stored).
Nothing of the moment or the machine enters the tar (no times, owners, process ids), so the same pictures with
the same settings always give the same bytes.

The manifest of a packed set: what `glc pack` writes last and what readers check shards against.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from glc.data.images import open_image, orientation, read_rgb
from glc.errors import ImageError

_LOSSY = frozenset({"JPEG", "MPO", "WEBP", "AVIF", "JPEG2000"})


class PictureTooSmall(ImageError):
    """The picture's short side is below the minimum asked for."""


@dataclass(frozen=True)
class Entry:
    """A picture to pack: its key in the shard, the name to keep, and where it lies."""

    key: str
    name: str
    path: str


@dataclass(frozen=True)
class Encoding:
    """What decides a sample's bytes: `size` and `min_side` in pixels of the short side, JPEG `quality`."""

    size: int | None = None
    min_side: int = 0
    quality: int = 95


def make_key(position: int, name: str) -> str:
    """Key of a sample: its position in the whole set (so it is unique) and a readable part of its name."""
    stem = Path(name).stem
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_")[:40]
    return f"{position:08d}-{readable}" if readable else f"{position:08d}"


def encode_sample(entry: Entry, encoding: Encoding) -> tuple[str, bytes, tuple[int, int]]:
    """Read one picture and encode it as it is stored.

    A plain JPEG (8-bit RGB, upright, not to be resized) keeps its bytes. All else becomes PNG, or, when
    it came from a lossy format, JPEG of the given quality with full-resolution colour.

    Returns:
        File ending ("jpg" or "png"), the bytes, and the stored width and height.

    Raises:
        PictureTooSmall: below `encoding.min_side`.
        ImageError: cannot be read.
    """
    try:
        data = Path(entry.path).read_bytes()
    except OSError as error:
        raise ImageError(f"{entry.name}: {error.strerror or error}") from error
    header = open_image(data, entry.name)
    source_format = header.format
    plain = source_format == "JPEG" and header.mode == "RGB" and orientation(header) == 1
    if min(header.size) < encoding.min_side:
        raise PictureTooSmall(f"{entry.name}: short side {min(header.size)} is below {encoding.min_side}")
    picture = read_rgb(data, entry.name)  # decodes everything, so that no broken file enters a shard
    resized = _fit_short_side(picture, encoding.size)
    if plain and resized is picture:
        return "jpg", data, picture.size
    buffer = io.BytesIO()
    if source_format in _LOSSY:
        resized.save(buffer, "JPEG", quality=encoding.quality, subsampling=0)
        return "jpg", buffer.getvalue(), resized.size
    resized.save(buffer, "PNG")
    return "png", buffer.getvalue(), resized.size


def _fit_short_side(picture: Image.Image, size: int | None) -> Image.Image:
    if size is None or min(picture.size) <= size:
        return picture
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


class _HashingWriter(io.RawIOBase):
    """Counts and hashes what passes through to a file."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        self.file.write(data)
        self.sha256.update(data)
        self.bytes += len(data)
        return len(data)


def write_shard(
    path: Path, entries: Sequence[Entry], encoding: Encoding, on_picture: Callable[[], None] = lambda: None
) -> ShardRecord:
    """Write a shard to `path`, through a temporary file beside it that is renamed when complete.

    Args:
        path: the shard's final place; its folder exists.
        entries: the pictures in order.
        encoding: how they are stored.
        on_picture: called after each picture, packed or skipped.

    Raises:
        OSError: the shard cannot be written (the disk is full, say); nothing is left at `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    skipped: list[dict[str, str]] = []
    count = 0
    try:
        with open(partial, "wb") as file:
            writer = _HashingWriter(file)
            with tarfile.open(fileobj=writer, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
                for entry in entries:
                    try:
                        ending, data, (width, height) = encode_sample(entry, encoding)
                    except ImageError as error:
                        reason = str(error).removeprefix(f"{entry.name}: ")
                        skipped.append({"name": entry.name, "reason": reason})
                    else:
                        note = {"name": entry.name, "width": width, "height": height}
                        _add(tar, f"{entry.key}.{ending}", data)
                        _add(tar, f"{entry.key}.json", json.dumps(note, ensure_ascii=False).encode())
                        count += 1
                    on_picture()
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return ShardRecord(path.name, count, writer.bytes, writer.sha256.hexdigest(), skipped)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its defaults are fixed: no time, no owner, mode 0644
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class PackError(ValueError):
    """Packing cannot start or go on, or a packed set is damaged; the message says why and what to do."""


@dataclass
class ShardRecord:
    """One shard: file name, pictures in it, bytes, hash; `skipped` has name and reason of those left out."""

    name: str
    count: int
    bytes: int
    sha256: str
    skipped: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """A packed set: the settings that made it and its shards, in order."""

    name: str
    settings: dict[str, Any]
    shards: list[ShardRecord]

    @property
    def count(self) -> int:
        """Pictures in all shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Pictures left out, in order: dicts with `name` and `reason`."""
        return [picture for shard in self.shards for picture in shard.skipped]

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
    """Read a folder's `manifest.json`.

    Raises:
        FileNotFoundError: there is none.
        PackError: it is damaged, or of a newer format.
    """
    path = Path(folder) / MANIFEST
    content = load_json(path)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise PackError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
    try:
        shards = [ShardRecord(**shard) for shard in content["shards"]]
        return Manifest(content["name"], content["settings"], shards)
    except (KeyError, TypeError) as error:
        raise PackError(f"{path}: damaged ({error!r}); pack again with --force") from error


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: there is none.
        PackError: it holds something else; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PackError(f"{path}: not readable as JSON ({error}); remove it and pack again") from error
    if not isinstance(content, dict):
        raise PackError(f"{path}: unexpected content; remove it and pack again")
    return content


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file through a temporary one beside it, so that readers never see half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
