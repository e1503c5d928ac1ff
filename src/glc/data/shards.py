"""Endless, reproducible streams of undecoded images, from shards or from a list.

Both kinds answer `records(seed, epoch, consumer, consumers)`: `consumers` is ranks x workers, and each
consumer draws a sequence of its own that is a function of these four numbers and nothing else.
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
    """A stretch of a local file: where a shard's member lies."""

    path: str
    start: int
    size: int

    def read(self) -> bytes:
        """Its bytes; fewer if the file ends early."""
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

    def decode(self) -> Image.Image:
        """Read it as 8-bit RGB (an image in memory is returned as it is, to be read only).

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
        return read_rgb(data, str(self))


class RecordSource(Protocol):
    """Anything that gives each consumer its endless sequence of records."""

    def records(
        self, seed: int, epoch: int, consumer: int, consumers: int, skip: int = 0
    ) -> Iterator[Record]:
        """Endless sequence of one consumer in one epoch, from its element number `skip` on."""
        ...


def read_shard(url: str) -> Iterator[Record]:
    """Read a shard's images in order, local or by URL.

    Raises:
        OSError, tarfile.TarError, ValueError: it cannot be opened or breaks off; what came before is good.
    """
    for sample in tarfile_samples(iter([{"url": url}])):
        for name, data in sample.items():
            if isinstance(data, bytes) and is_image_name(f"key.{name}"):
                yield Record(sample["__key__"], data, url)
                break


class ShardSource:
    """Shards drawn at random with replacement, their images shuffled through a buffer.

    Drawing with replacement needs no agreement between ranks: any number of shards serves any number of
    consumers, and all of them have the same number of batches. A shard that cannot be read, or breaks off, is
    named in a warning (once) and passed over.
    """

    def __init__(self, urls: Sequence[str], shuffle: int) -> None:
        self.urls = list(urls)
        self.shuffle = shuffle
        self._warned: set[str] = set()

    def records(
        self, seed: int, epoch: int, consumer: int, consumers: int, skip: int = 0
    ) -> Iterator[Record]:
        """Endless sequence of one consumer; skipping reads the shards but decodes nothing.

        Raises:
            RuntimeError: many shards in a row gave no image at all.
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
        raise RuntimeError(f"{barren} shards in a row held no readable image; the last one was {url}")

    def _readable(self, url: str) -> Iterator[Record]:
        try:
            yield from read_shard(url)
        except (OSError, tarfile.TarError, ValueError, EOFError) as error:
            if url not in self._warned:
                self._warned.add(url)
                _log.warning(
                    "shard %s is missing, truncated or damaged (%s); going on with others", url, error
                )


class ListSource:
    """A fixed list of records: whole permutations, one after another, dealt out among the consumers."""

    def __init__(self, records: Sequence[Record]) -> None:
        if not records:
            raise ValueError("a list of images needs at least one")
        self._records = list(records)

    def __len__(self) -> int:
        return len(self._records)

    def records(
        self, seed: int, epoch: int, consumer: int, consumers: int, skip: int = 0
    ) -> Iterator[Record]:
        """Endless sequence of one consumer; skipping costs nothing."""
        size = len(self._records)
        place = consumer + skip * consumers
        current, order = -1, np.empty(0, np.int64)
        while True:
            if place // size != current:
                current = place // size
                # The permutation is the same for all consumers: together they see each image once per pass.
                order = np.random.default_rng([seed, epoch, current]).permutation(size)
            yield self._records[order[place % size]]
            place += consumers


def index_shards(urls: Sequence[str], limit: int | None = None) -> list[Record]:
    """List the images of shards in order: of local ones their place in the file, of URLs their bytes.

    Args:
        urls: local paths and URLs.
        limit: stop after this many images.

    A shard that breaks off is named in a warning, and what is whole in it is listed.
    """
    found: list[Record] = []
    for url in urls:
        try:
            for record in read_shard(url) if is_url(url) else _index_local(url):
                if limit is not None and len(found) >= limit:
                    return found
                found.append(record)
        except (OSError, tarfile.TarError, ValueError, EOFError) as error:
            _log.warning("shard %s is missing, truncated or damaged (%s); using what is readable", url, error)
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
