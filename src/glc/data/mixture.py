"""The entries of `data.train` as one source of records, and their shares in it.

```
weights   entries                 records from
none      all shards              one ShardSource           each image has the same chance
none      all images, or cached   one ListSource            each image once per pass
none      both                    MixedSource of the entries, weighted by their numbers of images
none      one streamed data set   the data set
given     any                     MixedSource of the entries
```
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import cast

import numpy as np
from torch.utils.data import ConcatDataset

from glc.data.hugging_face import StreamedImages
from glc.data.images import SampleImage
from glc.data.shards import ListSource, Record, RecordSource, ShardSource, count_images, suffixes_in
from glc.errors import SettingError

_log = logging.getLogger(__name__)


class MixedSource:
    """A mixture of sources: each record comes from one of them, chosen at random with the given weights.

    Each source has its own sequence for each consumer, so its records are as if it were the only one.
    """

    def __init__(self, sources: Sequence[RecordSource], weights: Sequence[float]) -> None:
        self.sources = list(sources)
        self._ends = np.cumsum(np.asarray(weights, np.float64)) / sum(weights)
        self._ends[-1] = 1.0

    def records(
        self, seed: int, epoch: int, consumer: int, consumers: int, skip: int = 0
    ) -> Iterator[Record]:
        """Endless sequence of one consumer; each source skips its own records."""
        numbers = np.random.SeedSequence([seed, epoch, consumer, consumers], spawn_key=(1, 1))
        rng = np.random.default_rng(numbers)
        skipped = np.bincount(self._choices(rng, skip), minlength=len(self.sources))
        streams = [
            source.records(_seed_of_source(seed, i), epoch, consumer, consumers, int(skipped[i]))
            for i, source in enumerate(self.sources)
        ]
        while True:
            for choice in self._choices(rng, 1024):
                yield next(streams[choice])

    def _choices(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.searchsorted(self._ends, rng.random(count), side="right")


def _seed_of_source(seed: int, index: int) -> int:
    """Return a seed for a source of a mixture: the sources' orders must not depend on each other."""
    return int(np.random.SeedSequence([seed, index], spawn_key=(1,)).generate_state(1, np.uint64)[0])


@dataclass
class Entry:
    """An entry of `data.train`: shards, records of single images, or a streamed data set."""

    name: str
    shards: list[str] = field(default_factory=list)
    images: Sequence[Record] = ()
    stream: StreamedImages | None = None
    counts: list[int | None] = field(default_factory=list)
    """Images of each shard; None: not known."""
    estimated: bool = False
    """Whether some of `counts` are estimates."""

    def count(self) -> int | None:
        """Return its number of images; None if it is not known."""
        if None in self.counts or self.stream is not None:
            return None
        return len(self.images) + sum(count for count in self.counts if count is not None)


class Mixture:
    """The training images: a source of records with shares of its entries.

    Args:
        entries: the entries; `counts` is filled in.
        weights: their weights; None: every image has the same chance.
        shuffle: images in the buffers of each consumer (shards only).
        image: the image of each sample of shards.

    Raises:
        SettingError: no sample has the named file, or an entry has no image.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        weights: Sequence[float] | None,
        shuffle: int,
        image: SampleImage,
    ) -> None:
        self._entries = list(entries)
        for entry in entries:
            entry.counts, entry.estimated = count_images(entry.shards, image)
            if not (entry.shards or entry.images or entry.stream):
                wanted = (
                    "readable image" if image.member is None else f"readable {image.member} (data.member)"
                )
                raise SettingError(f"data.train: {entry.name} has no {wanted}; check the files")
        if image.member is not None:
            self._omit_shards_without(image.member)
        known = [entry.count() for entry in entries]
        unknown = [entry.name for entry, count in zip(entries, known, strict=True) if count is None]
        self.shares: list[float] | None = None if unknown else [count or 0 for count in known]
        if weights is not None:
            self.shares = list(weights)
        elif unknown and len(entries) > 1:
            _log.info(
                "data.train: the number of images of %s is not known, so its shards count as equal; "
                "data.weights= sets shares",
                ", ".join(unknown),
            )
        shards = list(chain(*(entry.shards for entry in entries)))
        images = joined([entry.images for entry in entries])
        streams = [entry.stream for entry in entries if entry.stream is not None]
        for stream in streams:
            stream.shuffle = shuffle
        self._source: RecordSource
        if streams and len(entries) == 1:
            self._source = streams[0]
        elif weights is None and not images and not streams:
            counts = _estimated(list(chain(*(entry.counts for entry in entries))))
            self._source = ShardSource(shards, shuffle, counts, image)
        elif weights is None and not shards and not streams:
            self._source = ListSource(images)
        elif self.shares is None:
            raise SettingError(
                f"data.train: a mixture in which the number of images of {unknown[0]} is not known; give "
                "data.weights=, one number per entry"
            )
        else:
            parts = np.array(self.shares) / sum(self.shares)
            sources: list[RecordSource] = [
                entry.stream or ListSource(entry.images)
                if entry.stream or entry.images
                # The buffers together have the size asked for.
                else ShardSource(entry.shards, round(shuffle * part), _estimated(entry.counts), image)
                for entry, part in zip(entries, parts, strict=True)
            ]
            self._source = MixedSource(sources, self.shares)

    def _omit_shards_without(self, member: str) -> None:
        """Omit shards that are known to have no such file, with a warning."""
        empty = [
            s for entry in self._entries for s, n in zip(entry.shards, entry.counts, strict=True) if n == 0
        ]
        if not empty:
            return
        found = f"{empty[0]} has {', '.join(suffixes_in(empty[0])) or 'none'}"
        for entry in self._entries:
            kept = [(s, n) for s, n in zip(entry.shards, entry.counts, strict=True) if n != 0]
            if entry.shards and not kept:
                raise SettingError(
                    f"data.member={member}: no sample of {entry.name} has such a file ({found}); correct the "
                    "name"
                )
            entry.shards = [shard for shard, _ in kept]
            entry.counts = [count for _, count in kept]
        _log.warning(
            "data.member=%s: no such file in %d shards, which are omitted (%s)", member, len(empty), found
        )

    def records(
        self, seed: int, epoch: int, consumer: int, consumers: int, skip: int = 0
    ) -> Iterator[Record]:
        """Endless sequence of one consumer."""
        return self._source.records(seed, epoch, consumer, consumers, skip)

    @property
    def random_start(self) -> bool:
        """Whether epochs start at random images of shards; see `ShardSource`."""
        return any(source.random_start for source in self._of_shards())

    @random_start.setter
    def random_start(self, value: bool) -> None:
        for source in self._of_shards():
            source.random_start = value and source.counts is not None

    def _of_shards(self) -> list[ShardSource]:
        parts = self._source.sources if isinstance(self._source, MixedSource) else [self._source]
        return [part for part in parts if isinstance(part, ShardSource)]

    def describe(self) -> str:
        """Return the numbers of shards and images, of several entries with their shares."""
        shards = [entry for entry in self._entries if entry.shards]
        parts = [entry.stream.describe() for entry in self._entries if entry.stream is not None]
        streamed = len(parts)
        if shards:
            counts = [entry.count() for entry in shards]
            about = "about " if any(entry.estimated for entry in shards) else ""
            total = "" if None in counts else f" ({about}{sum(count or 0 for count in counts)} images)"
            parts.append(f"{sum(len(entry.shards) for entry in shards)} training shards{total}")
        if len(shards) + streamed < len(self._entries):
            parts.append(f"{sum(len(entry.images) for entry in self._entries)} training images")
        text = " and ".join(parts)
        if len(self._entries) == 1 or self.shares is None:
            return text
        named = zip(self._entries, self.shares, strict=True)
        return f"{text}: " + ", ".join(f"{e.name} {n / sum(self.shares):.1%}" for e, n in named)


def joined(parts: Sequence[Sequence[Record]]) -> Sequence[Record]:
    """Return sequences of records as one; rows of data sets are still read when they are asked for."""
    parts = [part for part in parts if len(part)]
    if all(isinstance(part, list) for part in parts):
        return list(chain(*parts))
    return parts[0] if len(parts) == 1 else cast(Sequence[Record], ConcatDataset(parts))  # type: ignore[arg-type]


def _estimated(counts: Sequence[int | None]) -> list[int] | None:
    """Return the numbers of images of shards, for unknown ones the mean; None if none is known."""
    known = [count for count in counts if count is not None]
    if not sum(known):
        return None
    mean = max(1, round(sum(known) / len(known)))
    return [mean if count is None else count for count in counts]
