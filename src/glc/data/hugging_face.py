"""Hugging Face data sets as sources of images (the extra `hf`): map-style or streamed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from glc.data.deadline import Watch
from glc.data.shards import Record
from glc.data.urls import read_url
from glc.jobs.storage import is_url

_FILES = {".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class HuggingFaceImages:
    """The images of one split of a data set; nothing is loaded before `load`."""

    path: str
    """Name on the hub; a folder, as for `datasets.load_dataset` or from `save_to_disk`; a .parquet or .arrow
    file; or the name of a format (`parquet`, `webdataset`, ...) with `data_files`."""
    split: str = "train"
    """Split, or a part of it such as `train[:10%]`."""
    column: str | None = None
    """Column of the images; None: the one whose feature is an image."""
    name: str | None = None
    """Configuration of the data set."""
    data_files: Any = None
    """Files, as for `datasets.load_dataset`."""
    revision: str | None = None
    """Version on the hub."""
    streaming: bool = False
    """Read it as it comes instead of downloading it first."""

    def __str__(self) -> str:
        return self.path

    def load(self, key: str, watch: Watch | None = None) -> RowImages | StreamedImages:
        """Open the data set; without `streaming` it is downloaded first, once.

        Args:
            key: config key, for messages.
            watch: is told when the description of the data set has arrived.

        Raises:
            ValueError: `datasets` is not installed, the data set or split does not exist, or it has no column
                of images; the message starts with the key.
        """
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                f"{key}: a Hugging Face data set needs a package; run pip install 'glc-codec[hf]'"
            ) from error
        try:
            dataset = self._open(datasets, watch or Watch())
        except Exception as error:
            self._refuse(key, error)
        column = self._column(datasets, dataset, key)
        try:
            dataset = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
            first = next(iter(dataset), None)
        except Exception as error:
            raise ValueError(f"{key}.column={column}: not a column of images ({_line(error)})") from error
        if first is None:
            raise ValueError(f"{key}.split={self.split}: {self.path} has no rows there; give another split")
        kind = StreamedImages if isinstance(dataset, datasets.IterableDataset) else RowImages
        return kind(dataset, column, self.path)

    def _open(self, datasets: Any, watch: Watch) -> Any:
        folder = Path(os.path.expanduser(self.path))
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(folder)[self.split]
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(folder)
        path, files = str(folder), self.data_files
        if folder.is_file() and folder.suffix in _FILES:
            path, files = _FILES[folder.suffix], {self.split.partition("[")[0]: path}
        builder = datasets.load_dataset_builder(path, self.name, data_files=files, revision=self.revision)
        watch.note(True)
        if self.streaming:
            return builder.as_streaming_dataset(split=self.split)
        builder.download_and_prepare()
        return builder.as_dataset(split=self.split)

    def _refuse(self, key: str, error: Exception) -> NoReturn:
        text = _line(error)
        if isinstance(error, KeyError):
            raise ValueError(f"{key}.split={self.split}: no such split in {self.path}; correct it") from error
        if "split" in text.lower():
            raise ValueError(f"{key}.split={self.split}: {text}") from error
        raise ValueError(f"{key}.path={self.path}: {text}; correct the path or name") from error

    def _column(self, datasets: Any, dataset: Any, key: str) -> str:
        features = dataset.features or {}
        images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        names = list(features) or dataset.column_names or []
        if self.column is not None:
            if names and self.column not in names:
                raise ValueError(
                    f"{key}.column={self.column}: no such column; give one of {', '.join(names)}"
                )
            return self.column
        if len(images) != 1:
            what = f"columns of images {', '.join(images)}" if images else "no column of images"
            raise ValueError(
                f"{key}: {self.path} has {what}; name one with {key}.column= ({', '.join(images or names)})"
            )
        return images[0]


class RowImages(Sequence[Record]):
    """The rows of a map-style data set; a row is read when its record is asked for."""

    def __init__(self, dataset: Any, column: str, where: str) -> None:
        self._dataset, self._column, self._where = dataset, column, where

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return RowImages(
                self._dataset.select(range(*index.indices(len(self)))), self._column, self._where
            )
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        return _record(index, self._dataset[index][self._column], self._where)


class StreamedImages:
    """A streamed data set; a `RecordSource`.

    Each pass shuffles the files' order and, through a buffer, the images. Consumers share the files if their
    number divides evenly; otherwise each reads all files and keeps its part of the images.
    """

    def __init__(self, dataset: Any, column: str, where: str, shuffle: int = 1000) -> None:
        self._dataset, self._column, self._where = dataset, column, where
        self.shuffle = shuffle

    def first(self, limit: int | None) -> list[Record]:
        """Read the first images in order; None: all."""
        return list(itertools.islice(self._records(self._dataset), limit))

    def records(
        self, seed: int, epoch: int, consumer: int, consumers: int, skip: int = 0
    ) -> Iterator[Record]:
        """Endless sequence of one consumer; skipping reads the images without decoding."""
        return itertools.islice(self._passes(seed, epoch, consumer, consumers), skip, None)

    def describe(self) -> str:
        """Return what it is, for the log."""
        return f"streamed images of {self._where}"

    def _passes(self, seed: int, epoch: int, consumer: int, consumers: int) -> Iterator[Record]:
        from datasets.distributed import split_dataset_by_node

        for number in itertools.count():
            # The same order for all consumers: they divide it.
            order = int(np.random.SeedSequence([seed, epoch, number]).generate_state(1)[0])
            mixed = self._dataset.shuffle(seed=order, buffer_size=max(1, self.shuffle))
            records = self._records(split_dataset_by_node(mixed, consumer, consumers))
            first = next(records, None)
            if first is not None:
                yield first
                yield from records
            else:  # fewer images than consumers
                yield from self._records(mixed)

    def _records(self, dataset: Any) -> Iterator[Record]:
        # `iter(dataset)` would divide the files among the workers of a DataLoader once more.
        for index, batch in enumerate(dataset.iter(batch_size=1)):
            yield _record(index, batch[self._column][0], self._where)


def _record(index: int, image: Any, where: str) -> Record:
    """Return the record of an undecoded image: bytes, or the path of a file."""
    data, path = image["bytes"], image["path"]
    name = f"{index:08d}-{Path(path).stem}" if path else f"{index:08d}"
    if data is None:
        return Record(name, read_url(path) if is_url(path) else Path(path), where)
    return Record(name, data, where)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
