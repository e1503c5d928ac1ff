"""`ImageDataModule`: the data of every training stage.

data.train  shards or images --> TrainStream (random crops, endless) --> TrainLoader, epoch_batches long
data.val    images or shards --> FixedImages (centre crops)          --> DataLoader
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from glc.data.augmentations import Augmentations
from glc.data.crop_schedule import CropSchedule
from glc.data.images import SampleImage, from_uint8, parse_background
from glc.data.mixture import Entry, Mixture, joined
from glc.data.readable import find_readable
from glc.data.shards import Record, index_shards
from glc.data.sources import Source, Sources, entries_of
from glc.data.stream import (
    FixedImages,
    ImageBatch,
    TrainLoader,
    TrainStream,
    collate_images,
    end_workers_at_exit,
    outlive_stop_signals,
)
from glc.errors import ImageError, WeightsError

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

    train: Source | list[Source]
    """Folder of shards, shard pattern, URL, image folder, or a list of them (see `glc.data.sources`)."""
    val: Source | list[Source]
    """The same kinds, or a text file that lists images; taken in order, each once."""
    crop: int | Sequence[Mapping[str, Any]] = 256
    """Side of the training crops, in pixels, a multiple of `stride`; or a schedule (`CropSchedule`)."""
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
    open_timeout: float = 15.0
    """Seconds to wait at the start for the first byte of each source; 0: do not read them before training."""
    weights: Sequence[float] | None = None
    """Shares of the entries of `train` in the stream, in any unit; None: every image has the same chance."""
    member: str | None = None
    """The image of each sample of shards by its suffix, such as `jpg` or `mask.png`; None: the first one."""
    augment: Sequence[Callable[[Image.Image], Any]] | None = None
    """Transforms of the training crops, such as those of `torchvision.transforms.v2` (`Augmentations`)."""
    scale_batch: bool = False
    """With a schedule: `batch_size` is that of the smallest crops; batches of larger ones have no more
    pixels, but at least one image."""
    accumulate: int = 1
    """Batches per step (`stage.accumulate`); they have crops of one size."""

    glc_model: str | None = None
    """The model that decodes `.glc` images: a name, a file, or `auto` for the known model that wrote each;
    None: `.glc` files are not images."""

    def __post_init__(self) -> None:
        super().__init__()
        positive = (
            "batch_size",
            "accumulate",
            "epoch_batches",
            "val_crop",
            "stride",
            "val_batch_size",
            "val_limit",
        )
        others = ("num_workers", "shuffle", "seed", "open_timeout")
        for key, low in [*((key, 1) for key in positive), *((key, 0) for key in others)]:
            value = getattr(self, key)
            if value is not None and value < low:
                raise ValueError(f"data.{key}: is {value}, must be at least {low}")
        self._schedule = CropSchedule(self.crop)
        for key, side in [*(("crop", side) for side in self._schedule.sides), ("val_crop", self.val_crop)]:
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
        self._entries = entries_of(self.train)
        if self.weights is not None:
            if len(self.weights) != len(self._entries):
                raise ValueError(
                    f"data.weights: {len(self.weights)} numbers for the {len(self._entries)} entries of "
                    "data.train; give one for each"
                )
            if not all(0 < weight < float("inf") for weight in self.weights):
                raise ValueError(f"data.weights: {list(self.weights)}; give positive numbers")
        self._augment = Augmentations(self.augment or [])
        self._image = SampleImage(self.member)
        self._train_source: Mixture | None = None
        self._val_records: Sequence[Record] = []

    def setup(self, stage: str | None = None) -> None:
        """Find the files, read an image of each source, and fill the cache.

        The trainer calls it; a second call does nothing.
        """
        _register_pillow(self.glc_model)
        wanted = {"data.train": self.train, "data.val": self.val}
        if self._train_source is not None or stage == "validate":
            del wanted["data.train"]
        if self._val_records:
            del wanted["data.val"]
        found = find_readable(wanted, self.open_timeout, self.member)
        if "data.train" in found:
            for side in self._schedule.sides:
                example = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
                self._augment(Image.fromarray(example), np.random.default_rng(0))
            self._train_source = self._open_train(found["data.train"])
        if "data.val" in found:
            self._val_records = self._validation_images(found["data.val"])
            if not self._val_records:
                missing = "no image; pack them again" if self.member is None else f"no {self.member}"
                raise ValueError(f"data.val: the shards in {self.val} contain {missing}")

    def _open_train(self, found: Sequence[Sources]) -> Mixture:
        """Return the source of the training images."""
        if self.cache:
            images: list[Sequence[Record]] = [
                *_decoded([_listed(part, self._image) for part in found], self.background)
            ]
            entries = [
                Entry(str(name), images=part) for name, part in zip(self._entries, images, strict=True)
            ]
        else:
            entries = [
                Entry(str(name), part.shards, _rows(part), part.stream)
                for name, part in zip(self._entries, found, strict=True)
            ]
        return Mixture(entries, self.weights, self.shuffle, self._image)

    def _validation_images(self, found: Sequence[Sources]) -> Sequence[Record]:
        """Return the validation images, in order."""
        parts: list[Sequence[Record]] = []
        for sources in found:
            left = None if self.val_limit is None else self.val_limit - sum(map(len, parts))
            if left != 0:
                parts.append(_listed(sources, self._image, left))
        return joined(parts)

    def describe(self) -> str:
        """Return the numbers of training images or shards and of validation images, after `setup`."""
        train = "0 training images" if self._train_source is None else self._train_source.describe()
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
            crop=self._schedule,
            batch_size=self.batch_size,
            epoch_batches=self.epoch_batches,
            seed=self.seed,
            rank=rank,
            ranks=ranks,
            min_scale=self.min_scale,
            max_scale=self.max_scale,
            flip=self.flip,
            background=self.background,
            scale_batch=self.scale_batch,
            accumulate=self.accumulate,
            augment=self._augment,
        )
        return TrainLoader(
            stream,
            self.num_workers,
            self._trainer_epoch,
            lambda: None if self.trainer is None else self.trainer.global_step,
            pin_memory=torch.cuda.is_available(),
            start_worker=partial(_start_worker, self.glc_model),
        )

    def val_dataloader(self) -> DataLoader[ImageBatch]:
        """Loader of the fixed list, in order; the trainer splits it between ranks."""
        self.setup("validate")
        workers = min(self.num_workers, len(self._val_records))
        loader: DataLoader[Any] = DataLoader(
            FixedImages(self._val_records, self.val_crop, self.stride, self.background),
            batch_size=self.val_batch_size,
            collate_fn=collate_images,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(_start_worker, self.glc_model),
            generator=torch.Generator().manual_seed(self.seed),
        )
        end_workers_at_exit(loader)
        return loader

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


def _register_pillow(model: str | None) -> None:
    """Let Pillow decode `.glc` files with a model; see `ImageDataModule.glc_model`.

    Raises:
        ValueError: the model does not exist.
    """
    if model is None:
        return
    from glc import pillow

    try:
        pillow.register(model=None if model == "auto" else model)
    except WeightsError as error:
        raise ValueError(f"data.glc_model: {error}") from error


def _start_worker(model: str | None, worker: int) -> None:
    outlive_stop_signals(worker)
    _register_pillow(model)  # a process that is not forked has not inherited it


def _listed(found: Sources, image: SampleImage, limit: int | None = None) -> Sequence[Record]:
    """Return the images of a source, in order."""
    if found.shards:
        return index_shards(found.shards, limit, image)
    if found.stream is not None:
        return found.stream.first(limit)
    return _rows(found)[:limit]


def _rows(found: Sources) -> Sequence[Record]:
    """Return the images of a source that is neither shards nor streamed."""
    return [Record(name, path) for name, path in found.images] if found.rows is None else found.rows


def _decoded(entries: Sequence[Sequence[Record]], background: str) -> list[list[Record]]:
    """Decode the images of all entries into memory, in order; unreadable ones are skipped with a warning."""

    def decode(item: tuple[int, Record]) -> tuple[int, Record, Image.Image] | ImageError:
        try:
            return *item, item[1].decode(background)
        except ImageError as error:
            return error

    kept: list[list[Record]] = [[] for _ in entries]
    bad = used = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        items = ((number, record) for number, records in enumerate(entries) for record in records)
        for result in _in_order(pool, decode, items):
            if isinstance(result, ImageError):
                bad += 1
                _log.warning("skipping %s (%d unreadable so far)", result, bad)
                continue
            number, record, image = result
            kept[number].append(Record(record.key, image, record.where))
            used += 4 * image.width * image.height
            if used > _CACHE_LIMIT:
                raise ValueError(
                    f"data.cache: the decoded images take more than {_CACHE_LIMIT >> 30} GiB; "
                    "set data.cache=false, or pack them smaller (glc pack --size)"
                )
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
