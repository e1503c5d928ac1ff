"""Endless, reproducible streams of undecoded images, from shards or from a list.

Both kinds implement `records(seed, epoch, consumer, consumers)`: `consumers` is ranks x workers, and each
consumer gets a sequence of its own that depends only on these four numbers.
"""

from __future__ import annotations

import logging
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import webdataset as wds
from PIL import Image
from webdataset.gopen import gopen
from webdataset.tariterators import tarfile_samples

from glc.data.images import is_image_name, read_rgb
from glc.data.sources import is_url
from glc.errors import ImageError

_log = logging.getLogger(__name__)


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
        data = self.data
        if isinstance(data, Image.Image):
            return data
        if isinstance(data, FileSlice):
            try:
                data = data.read()
            except OSError as error:
                raise ImageError(f"{self}: {error.strerror or error}") from error
        return read_rgb(data, str(self), background=background)


class RecordSource(Protocol):
    """Provides each consumer with an endless sequence of records."""

    def records(
        self, seed: int, epoch: int, consumer: int, consumers: int, skip: int = 0
    ) -> Iterator[Record]:
        """Endless sequence of one consumer in one epoch, starting at element `skip`."""
        ...


def read_shard(url: str) -> Iterator[Record]:
    """Read a shard's images in order, local or by URL.

    Raises:
        OSError, tarfile.TarError, ValueError: it cannot be opened or is truncated; earlier images are valid.
    """
    for sample in tarfile_samples(iter([{"url": url}])):
        for name, data in sample.items():
            if isinstance(data, bytes) and is_image_name(f"key.{name}"):
                yield Record(sample["__key__"], data, url)
                break


class ShardSource:
    """Shards sampled at random with replacement, their images shuffled through a buffer.

    Sampling with replacement needs no coordination between ranks: any number of shards serves any number of
    consumers, and all have the same number of batches. A shard that cannot be read, or is truncated, is named
    in a warning (once) and skipped.
    """

    def __init__(self, urls: Sequence[str], shuffle: int) -> None:
        self.urls = list(urls)
        self.shuffle = shuffle
        self._warned: set[str] = set()

    def records(
        self, seed: int, epoch: int, consumer: int, consumers: int, skip: int = 0
    ) -> Iterator[Record]:
        """Endless sequence of one consumer; skipping reads the shards without decoding.

        Raises:
            RuntimeError: many shards in a row contain no image.
        """
        state = np.random.SeedSequence([seed, epoch, consumer, consumers]).generate_state(2, np.uint64)
        records = self._resampled(random.Random(int(state[0])))
        if self.shuffle > 1:
            records = wds.shuffle(self.shuffle, rng=random.Random(int(state[1])))(records)
        for _ in range(skip):
            next(records)
        return records

    def _resampled(self, rng: random.Random) -> Iterator[Record]:
        barren = 0
        while barren < 2 * len(self.urls) + 8:
            url = rng.choice(self.urls)
            barren += 1
            for record in self._readable(url):
                barren = 0
                yield record
        raise RuntimeError(
            f"data.train: {barren} shards in a row contain no readable image, the last is {url}; "
            "pack them again"
        )

    def _readable(self, url: str) -> Iterator[Record]:
        try:
            yield from read_shard(url)
        except (OSError, tarfile.TarError, ValueError, EOFError) as error:
            if url not in self._warned:
                self._warned.add(url)
                _log.warning("shard %s is missing, truncated or corrupt (%s); skipping it", url, error)


class ListSource:
    """A fixed list of records: one random permutation after another, divided among the consumers."""

    def __init__(self, records: Sequence[Record]) -> None:
        if not records:
            raise ValueError("a list of images needs at least one")
        self._records = list(records)

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
            yield self._records[order[position % size]]
            position += consumers


def index_shards(urls: Sequence[str], limit: int | None = None) -> list[Record]:
    """List the images of shards in order: as byte ranges of local files, as bytes from URLs.

    Args:
        urls: local paths and URLs.
        limit: stop after this many images.

    A truncated shard is named in a warning, and its complete images are listed.
    """
    found: list[Record] = []
    for url in urls:
        try:
            for record in read_shard(url) if is_url(url) else _index_local(url):
                if limit is not None and len(found) >= limit:
                    return found
                found.append(record)
        except (OSError, tarfile.TarError, ValueError, EOFError) as error:
            _log.warning(
                "shard %s is missing, truncated or corrupt (%s); using its readable part", url, error
            )
    return found


def _index_local(path: str) -> Iterator[Record]:
    with gopen(path) as file:
        end = file.seek(0, 2)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isreg() or not is_image_name(member.name):
                    continue
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError("unexpected end of data")
                key = member.name[: member.name.rindex(".")]
                yield Record(key, FileSlice(path, member.offset_data, member.size), path)
