"""`ImageDataModule`: the data of every training stage.

data.train  shards or images --> TrainStream (random crops, endless) --> TrainLoader, epoch_batches long
data.val    images or shards --> FixedImages (centre crops)          --> DataLoader
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import lightning as L
import torch
from PIL import Image
from torch.utils.data import DataLoader

from glc.data.images import from_uint8, parse_background
from glc.data.shards import ListSource, Record, RecordSource, ShardSource, index_shards
from glc.data.sources import Sources, resolve
from glc.data.stream import (
    FixedImages,
    ImageBatch,
    TrainLoader,
    TrainStream,
    collate_images,
    outlive_stop_signals,
)
from glc.errors import ImageError

_log = logging.getLogger(__name__)

A = TypeVar("A")
B = TypeVar("B")

_CACHE_LIMIT = 8 << 30  # bytes of decoded images


@dataclass(eq=False, repr=False)
class ImageDataModule(L.LightningDataModule):
    """Random crops to train on and a fixed list to validate on, as `ImageBatch`es in [-1, 1].

    The training loader yields uint8 levels; they become floats once the trainer has moved them to the device.

    Raises:
        ValueError: an argument is out of range, or (in `setup`) nothing is found; the message starts with the
            config key.
    """

    train: str | list[str]
    """Folder of shards, shard pattern, URL, image folder, or a list of them (see `glc.data.sources`)."""
    val: str | list[str]
    """The same kinds, or a text file that lists images; taken in order, each once."""
    crop: int = 256
    """Side of the training crops, in pixels; a multiple of `stride`."""
    batch_size: int = 8
    """Images per training batch and device."""
    epoch_batches: int = 1000
    """Batches that make one epoch; the stream has no end of its own."""
    val_crop: int | None = None
    """Side of the validation crops; None: the largest centred crop with sides divisible by `stride`, one
    image per batch."""
    stride: int = 64
    """The sides of every image must be divisible by this."""
    val_batch_size: int | None = None
    """Images per validation batch; None: `batch_size`, or 1 when `val_crop` is None."""
    val_limit: int | None = None
    """Use only the first `val_limit` validation images; None: all."""
    num_workers: int = 4
    """Worker processes per loader and rank."""
    shuffle: int = 1000
    """Images in each worker's shuffle buffer (shards only; 0 or 1 turns it off)."""
    min_scale: float = 1.0
    """Smallest factor of the random rescaling before the crop. Images smaller than the crop are always scaled
    up to it."""
    max_scale: float = 1.0
    """Largest factor; with both factors 1 nothing is rescaled."""
    flip: bool = True
    """Mirror half of the training crops."""
    seed: int = 0
    """Seed of crops, shuffling and order."""
    background: str = "white"
    """Colour behind transparent pixels: a name or #rrggbb."""
    cache: bool = False
    """Keep the decoded training images in memory (per rank); for small sets, at most 8 GiB."""

    def __post_init__(self) -> None:
        super().__init__()
        positive = (
            "crop",
            "batch_size",
            "epoch_batches",
            "val_crop",
            "stride",
            "val_batch_size",
            "val_limit",
        )
        for key, low in [*((key, 1) for key in positive), ("num_workers", 0), ("shuffle", 0), ("seed", 0)]:
            value = getattr(self, key)
            if value is not None and value < low:
                raise ValueError(f"data.{key}: is {value}, must be at least {low}")
        for key in ("crop", "val_crop"):
            side = getattr(self, key)
            if side is not None and side % self.stride:
                near = max(self.stride, round(side / self.stride) * self.stride)
                raise ValueError(
                    f"data.{key}: {side} is not a multiple of data.stride={self.stride}; try {near}"
                )
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(f"data.min_scale, data.max_scale: need 0 < {self.min_scale} <= {self.max_scale}")
        if self.val_crop is None and self.val_batch_size not in (None, 1):
            raise ValueError(
                "data.val_batch_size: uncropped images differ in size; use 1, or set data.val_crop"
            )
        if self.val_batch_size is None:
            self.val_batch_size = 1 if self.val_crop is None else self.batch_size
        try:
            parse_background(self.background)
        except ValueError as error:
            raise ValueError(f"data.background: {error}") from error
        self._train_source: RecordSource | None = None
        self._val_records: list[Record] = []

    def setup(self, stage: str | None = None) -> None:
        """Find the files and fill the cache. The trainer calls it; a second call does nothing."""
        if self._train_source is None and stage in (None, "fit"):
            found = resolve(self.train, "data.train")
            if self.cache:
                self._train_source = ListSource(_decoded(found, self.background))
            elif found.shards:
                self._train_source = ShardSource(found.shards, self.shuffle)
            else:
                self._train_source = ListSource([Record(name, path) for name, path in found.images])
        if not self._val_records and stage in (None, "fit", "validate"):
            found = resolve(self.val, "data.val")
            self._val_records = _listed(found, self.val_limit)
            if not self._val_records:
                raise ValueError(f"data.val: the shards in {self.val} contain no image; pack them again")

    def describe(self) -> str:
        """Return the numbers of training images or shards and of validation images, after `setup`."""
        source = self._train_source
        if isinstance(source, ShardSource):
            train = f"{len(source.urls)} training shards"
        else:
            train = f"{0 if source is None else len(source)} training images"  # type: ignore[arg-type]
        return f"{train}, {len(self._val_records)} validation images"

    def train_dataloader(self) -> TrainLoader:
        """Loader of this rank's stream, `epoch_batches` long; it can save and restore its position."""
        self.setup("fit")
        assert self._train_source is not None
        # Lightning warns about any iterable with a length; here the workers do divide the batches.
        warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__` defined")
        rank, ranks = self._rank_and_ranks()
        stream = TrainStream(
            self._train_source,
            crop=self.crop,
            batch_size=self.batch_size,
            epoch_batches=self.epoch_batches,
            seed=self.seed,
            rank=rank,
            ranks=ranks,
            min_scale=self.min_scale,
            max_scale=self.max_scale,
            flip=self.flip,
            background=self.background,
        )
        return TrainLoader(
            stream, self.num_workers, self._trainer_epoch, pin_memory=torch.cuda.is_available()
        )

    def val_dataloader(self) -> DataLoader[ImageBatch]:
        """Loader of the fixed list, in order; the trainer splits it between ranks."""
        self.setup("validate")
        workers = min(self.num_workers, len(self._val_records))
        return DataLoader(
            FixedImages(self._val_records, self.val_crop, self.stride, self.background),  # type: ignore[arg-type]
            batch_size=self.val_batch_size,
            collate_fn=collate_images,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlive_stop_signals,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        """Convert a training batch to floats in [-1, 1], on the device."""
        return batch._replace(x=from_uint8(batch.x)) if batch.x.dtype == torch.uint8 else batch

    def _trainer_epoch(self) -> int | None:
        # Completed epochs. An epoch that a time limit interrupted is resumed, so it is not counted.
        return None if self.trainer is None else self.trainer.current_epoch

    def _rank_and_ranks(self) -> tuple[int, int]:
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1


def _listed(found: Sources, limit: int | None) -> list[Record]:
    if found.shards:
        return index_shards(found.shards, limit)
    return [Record(name, path) for name, path in found.images[:limit]]


def _decoded(found: Sources, background: str) -> list[Record]:
    """Decode all training images into memory, in order; unreadable ones are skipped with a warning."""

    def decode(record: Record) -> tuple[Record, Image.Image] | ImageError:
        try:
            return record, record.decode(background)
        except ImageError as error:
            return error

    kept: list[Record] = []
    bad = used = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for result in _in_order(pool, decode, _listed(found, None)):
            if isinstance(result, ImageError):
                bad += 1
                _log.warning("skipping %s (%d unreadable so far)", result, bad)
                continue
            record, image = result
            kept.append(Record(record.key, image, record.where))
            used += 4 * image.width * image.height
            if used > _CACHE_LIMIT:
                raise ValueError(
                    f"data.cache: the decoded images take more than {_CACHE_LIMIT >> 30} GiB; "
                    "set data.cache=false, or pack them smaller (glc pack --size)"
                )
    if not kept:
        raise ValueError("data.train: none of its images can be read; check the files")
    return kept


def _in_order(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Map in order with at most 32 results in flight, so that the cache limit is checked in time."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= 32:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
