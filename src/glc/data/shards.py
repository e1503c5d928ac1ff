"""Endless, reproducible streams of undecoded images, from shards or from a list.

Both kinds implement `records(seed, epoch, consumer, consumers)`: `consumers` is ranks x workers, and each
consumer gets a sequence of its own that depends only on these four numbers.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import webdataset as wds
from PIL import Image
from webdataset.tariterators import base_plus_ext

from glc.data.deadline import Watch
from glc.data.images import SampleImage, read_rgb
from glc.data.jpeg import Jpeg, open_jpeg
from glc.data.shard_writer import PackError, ShardRecord, read_manifest
from glc.data.urls import open_url
from glc.errors import ImageError
from glc.jobs.storage import is_url

_log = logging.getLogger(__name__)
_COUNTED = 64
"""Shards without a record whose images are counted; reading the headers of thousands takes minutes."""


@dataclass(frozen=True)
class FileSlice:
    """Byte range of a shard's member in a local file."""

    path: str
    start: int
    size: int

    def read(self) -> bytes:
        """Return its bytes; fewer if the file is truncated."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


@dataclass(frozen=True)
class Record:
    """An image, decoded or not; `where` is the shard it came from, empty for files."""

    key: str
    data: bytes | Path | FileSlice | Image.Image
    where: str = ""

    def __str__(self) -> str:
        if isinstance(self.data, Path):
            return str(self.data)
        return f"{self.where}: {self.key}" if self.where else self.key

    def decode(self, background: str = "white") -> Image.Image:
        """Read it as 8-bit sRGB. An image in memory is returned itself, not a copy: do not modify it.

        Args:
            background: colour behind transparent pixels.

        Raises:
            ImageError: unreadable; the message names file, or shard and key.
        """
        data = self._content()
        return data if isinstance(data, Image.Image) else read_rgb(data, str(self), background=background)

    def open(self, background: str = "white") -> Image.Image | Jpeg:
        """Read it as `decode`, but do not decode a JPEG that needs no conversion yet: only its crops are."""
        data = self._content()
        if isinstance(data, Path) and data.suffix.lower() in (".jpg", ".jpeg"):
            with contextlib.suppress(OSError):  # below, with its name
                data = data.read_bytes()
        if isinstance(data, bytes) and (jpeg := open_jpeg(data, str(self))) is not None:
            return jpeg
        return data if isinstance(data, Image.Image) else read_rgb(data, str(self), background=background)

    def _content(self) -> bytes | Path | Image.Image:
        if not isinstance(self.data, FileSlice):
            return self.data
        try:
            return self.data.read()
        except OSError as error:
            raise ImageError(f"{self}: {error.strerror or error}") from error


class RecordSource(Protocol):
    """Provides each consumer with an endless sequence of records."""

    def records(
        self, seed: int, epoch: int, consumer: int, consumers: int, skip: int = 0
    ) -> Iterator[Record]:
        """Endless sequence of one consumer in one epoch, starting at element `skip`."""
        ...


def read_shard(url: str, image: SampleImage | None = None, watch: Watch | None = None) -> Iterator[Record]:
    """Read a shard's images in order, one per sample.

    Args:
        url: path, URL or `pipe:COMMAND` of a tar file, compressed or not.
        image: the image of each sample.
        watch: is told when data arrive.

    Raises:
        OSError: it cannot be opened, is truncated or no tar file; earlier images are valid.
    """
    image = image or SampleImage()
    for key, files in itertools.groupby(_contents(url, watch), lambda file: file[0]):
        contents = {suffix: data for _, suffix, data in files}
        chosen = image.choose(list(contents), f"{url}: {key}")
        if chosen is not None:
            yield Record(key, contents[chosen], url)


def _contents(url: str, watch: Watch | None) -> Iterator[tuple[str, str, bytes]]:
    """Yield key, suffix and content of each file in a shard; reads it from front to back."""
    with _damage(), open_url(url, watch) as opened:
        try:
            with tarfile.open(fileobj=opened, mode="r|*") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all headers
                    key, suffix = base_plus_ext(member.name)
                    content = tar.extractfile(member) if member.isreg() and key is not None else None
                    if content is not None:
                        yield key, suffix.lower(), content.read()
        except (OSError, tarfile.TarError, EOFError):
            yield "", "", b""  # the sample before it is complete
            raise


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Convert whatever a corrupt tar file makes tarfile raise to an OSError."""
    try:
        yield
    except OSError:
        raise
    except (tarfile.TarError, EOFError, zlib.error) as error:
        text = str(error)
        known = {"empty file": "the file is empty", "unexpected end of data": "the tar file is truncated"}
        raise OSError(known.get(text, f"not a tar file, or a corrupt one ({text})")) from error
    except Exception as error:  # a corrupt header may even raise MemoryError
        raise OSError(f"the tar file has a corrupt header ({type(error).__name__})") from error


def _is_plain(shard: str) -> bool:
    """Whether a shard is a local tar file that is not compressed, so that its members are byte ranges."""
    return not is_url(shard) and shard.lower().endswith(".tar")


class ShardSource:
    """Shards sampled at random with replacement, their images shuffled through a buffer.

    Sampling with replacement needs no coordination between ranks: any number of shards serves any number of
    consumers, and all have the same number of batches. A shard that cannot be read, or is truncated, is named
    in a warning (once) and skipped.

    A shard is read to its end, so equal chances for shards give equal chances to images, of however many
    images the shards are; but not at the start of an epoch. There the images of small shards would come too
    often, 33 times as often as those of a shard 33 times as large; and where a consumer reads fewer images in
    an epoch than a shard has, those at the end of shards would never come. With `counts`, an epoch therefore
    starts at a random image, which gives each image the same chance at each place of the sequence.

    Args:
        urls: local paths and URLs.
        shuffle: images in the buffer; 0 or 1: none.
        counts: images of each shard; None: each epoch starts at the first image of a shard.
        image: the image of each sample.
    """

    def __init__(
        self,
        urls: Sequence[str],
        shuffle: int,
        counts: Sequence[int] | None = None,
        image: SampleImage | None = None,
    ) -> None:
        self.urls = list(urls)
        self.shuffle = shuffle
        self.counts = None if counts is None else list(counts)
        self.random_start = counts is not None
        """Whether an epoch starts at a random image of a shard, not at its first."""
        self.image = image or SampleImage()
        self._warned: set[str] = set()

    def records(
        self, seed: int, epoch: int, consumer: int, consumers: int, skip: int = 0
    ) -> Iterator[Record]:
        """Endless sequence of one consumer; skipping reads the shards without decoding.

        Raises:
            RuntimeError: many shards in a row contain no image.
        """
        if consumer:
            self.image.said = True  # the first consumer says it
        state = np.random.SeedSequence([seed, epoch, consumer, consumers]).generate_state(2, np.uint64)
        records = self._resampled(random.Random(int(state[0])))
        if self.shuffle > 1:
            records = wds.shuffle(self.shuffle, rng=random.Random(int(state[1])))(records)
        for _ in range(skip):
            next(records)
        return records

    def _resampled(self, rng: random.Random) -> Iterator[Record]:
        barren = 0
        if self.random_start and self.counts is not None:
            (first,) = rng.choices(range(len(self.urls)), self.counts)
            yield from itertools.islice(
                self._readable(self.urls[first]), rng.randrange(self.counts[first]), None
            )
        while barren < 2 * len(self.urls) + 8:
            url = rng.choice(self.urls)
            barren += 1
            for record in self._readable(url):
                barren = 0
                yield record
        wanted = "readable image" if self.image.member is None else f"readable {self.image.member}"
        raise RuntimeError(
            f"data.train: {barren} shards in a row contain no {wanted}, the last is {url}; pack them again"
        )

    def _readable(self, url: str) -> Iterator[Record]:
        try:
            yield from read_shard(url, self.image)
        except OSError as error:
            if url not in self._warned:
                self._warned.add(url)
                _log.warning("shard %s is missing, truncated or corrupt (%s); skipping it", url, error)


class ListSource:
    """A fixed sequence of records: one random permutation after another, divided among the consumers."""

    def __init__(self, records: Sequence[Record]) -> None:
        if not records:
            raise ValueError("a list of images needs at least one")
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def records(
        self, seed: int, epoch: int, consumer: int, consumers: int, skip: int = 0
    ) -> Iterator[Record]:
        """Endless sequence of one consumer; skipping takes no time."""
        size = len(self._records)
        position = consumer + skip * consumers
        current, order = -1, np.empty(0, np.int64)
        while True:
            if position // size != current:
                current = position // size
                # The permutation is the same for all consumers: together they see each image once per pass.
                order = np.random.default_rng([seed, epoch, current]).permutation(size)
            yield self._records[int(order[position % size])]
            position += consumers


def count_images(shards: Sequence[str], image: SampleImage) -> tuple[list[int | None], bool]:
    """Return the numbers of images of shards, None where it is not known, and whether some are estimates.

    They are in `manifest.json` beside the shard, also at a URL; those of other plain local shards are counted
    by their headers. Of a truncated shard the complete images are counted, of one that cannot be read none.
    Where many would have to be counted, some are, and the numbers of the others are in proportion to their
    bytes.
    """

    def listing(folder: str) -> dict[str, ShardRecord]:
        try:
            return {record.name: record for record in read_manifest(folder).shards}
        except (OSError, PackError):
            return {}

    def recorded(shard: str) -> int | None:
        folder, name = _split(shard)
        known = listed.get(folder, {}).get(name)
        if known is None or not (is_url(shard) or known.bytes == _size(shard)):
            return None
        return known.count

    def count(shard: str) -> int:
        found = 0
        with contextlib.suppress(OSError):
            for _ in _index_local(shard, image):
                found += 1
        return found

    given = list(dict.fromkeys(shards))
    folders = {_split(shard)[0] for shard in given if not shard.startswith("pipe:")}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # they wait for disk and network
        # A manifest counts samples; with `member` some may have no such file.
        listed = dict(zip(folders, pool.map(listing, folders), strict=True)) if image.member is None else {}
        known = dict(zip(given, pool.map(recorded, given), strict=True))
        others = [shard for shard in given if known[shard] is None and _is_plain(shard)]
        sample = others[:: -(-len(others) // _COUNTED) or 1]
        known |= zip(sample, pool.map(count, sample), strict=True)
    if len(sample) < len(others):
        per_byte = sum(known[shard] or 0 for shard in sample) / max(1, sum(map(_size, sample)))
        rest = [shard for shard in others if known[shard] is None]
        known |= {shard: max(1, round(per_byte * _size(shard))) for shard in rest}
    return [known[shard] for shard in shards], len(sample) < len(others)


def _split(shard: str) -> tuple[str, str]:
    """Return the folder of a shard, with the separator at its end, and the shard's name in it."""
    if is_url(shard):
        folder, slash, name = shard.rpartition("/")
        return folder + slash, name
    return os.path.join(os.path.dirname(shard), ""), os.path.basename(shard)


def _size(path: str) -> int:
    """Return the bytes of a file; 0 if it cannot be read."""
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return 0


def suffixes_in(shard: str) -> list[str]:
    """Return the suffixes of the files of a local shard, in order of appearance."""
    with contextlib.suppress(OSError):
        return list(dict.fromkeys(suffix for _, suffix, _ in _members(shard)))
    return []


def index_shards(
    urls: Sequence[str], limit: int | None = None, image: SampleImage | None = None
) -> list[Record]:
    """List the images of shards in order, one per sample: byte ranges of local files, bytes of others.

    Args:
        urls: local paths and URLs.
        limit: stop after this many images.
        image: the image of each sample.

    A truncated shard is named in a warning, and its complete samples are listed.
    """
    image = image or SampleImage()
    found: list[Record] = []
    for url in urls:
        try:
            for record in _index_local(url, image) if _is_plain(url) else read_shard(url, image):
                if limit is not None and len(found) >= limit:
                    return found
                found.append(record)
        except OSError as error:
            _log.warning(
                "shard %s is missing, truncated or corrupt (%s); using its readable part", url, error
            )
    return found


def _index_local(path: str, image: SampleImage) -> Iterator[Record]:
    for key, files in itertools.groupby(_members(path), lambda member: member[0]):
        slices = {suffix: part for _, suffix, part in files}
        chosen = image.choose(list(slices), f"{path}: {key}")
        if chosen is not None:
            yield Record(key, slices[chosen], path)


def _members(path: str) -> Iterator[tuple[str, str, FileSlice]]:
    """Yield key, suffix and place of each file in a local shard."""
    with _damage(), open(path, "rb") as file:
        end = file.seek(0, 2)
        file.seek(0)
        try:
            for name, start, size in _plain_members(file) or _all_members(file):
                key, suffix = base_plus_ext(name)
                if key is None:
                    continue
                if start + size > end:
                    raise tarfile.ReadError("unexpected end of data")
                yield key, suffix.lower(), FileSlice(path, start, size)
        except tarfile.TarError:
            yield "", "", FileSlice(path, end, 0)  # the sample before it is complete
            raise


def _all_members(file: IO[bytes]) -> Iterator[tuple[str, int, int]]:
    """Yield name, start and size of the regular files in a tar file."""
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        yield from ((m.name, m.offset_data, m.size) for m in tar if m.isreg())


def _plain_members(file: IO[bytes]) -> list[tuple[str, int, int]] | None:
    """Return what `_all_members` yields in a tenth of its time; None where a header needs tarfile."""
    found: list[tuple[str, int, int]] = []
    start = 0
    while header := file.read(tarfile.BLOCKSIZE):
        if not any(header):
            return found
        kind = header[156:157]
        if header[257:263] != b"ustar\0" or kind not in (b"0", b"5"):
            return None
        prefix, name = (header[part].split(b"\0", 1)[0] for part in (slice(345, 500), slice(100)))
        try:
            size = int(header[124:136].strip(b"\0 "), 8)
            path = (prefix + b"/" * bool(prefix) + name).decode()
        except ValueError:
            return None
        start += tarfile.BLOCKSIZE
        if kind == b"0":
            found.append((path, start, size))
        start = file.seek(start + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
    return found or None
