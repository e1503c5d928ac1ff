"""Batches of records: a resumable stream of random crops, and the fixed validation list.

How a batch of the training stream is made, for one rank and W workers:

    batch b of epoch e  <-  role b % W, its batch number b // W  <-  slots of that role
    slot p              <-  record p of `source.records(seed, e, rank * W + role, ranks * W)`
                            cropped and augmented, seeded by the same numbers and p

The side of the crops depends on seed, epoch and step only, so it is the same on all ranks (`CropSchedule`).
A position in the stream is the pair (epoch, batch), the same on every rank, and a loader can start at any
position. If a slot's record cannot be decoded, the next readable record takes its place; the other slots do
not change.
"""

from __future__ import annotations

import atexit
import logging
import signal
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from glc.data.augmentations import Augmentations
from glc.data.crop_schedule import CropSchedule
from glc.data.images import stack_levels, to_tensor
from glc.data.jpeg import Jpeg
from glc.data.shards import Record, RecordSource
from glc.errors import ImageError, SettingError

_log = logging.getLogger(__name__)

_GIVE_UP_AFTER = 1000  # unreadable images in a row: the data set is unusable


class ImageBatch(NamedTuple):
    """`x`: float32 [B, 3, H, W] in [-1, 1], or uint8 levels before the transfer; `key`: B names."""

    x: Tensor
    key: list[str]


def images_of(batch: Any) -> Tensor:
    """Return the images `[B, 3, H, W]` of a batch: its `x`, the batch itself or the first of a sequence.

    Raises:
        SettingError: it contains no such tensor.
    """
    x = getattr(batch, "x", batch[0] if isinstance(batch, (tuple, list)) and batch else batch)
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != 3:
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise SettingError(
            f"data: a batch contains {got} instead of images; give ImageBatch(x, keys), a tensor or "
            "(tensor, ...), the tensor [B, 3, H, W] of floats in [-1, 1]"
        )
    return x


class _UnreadableImages:
    """Warns once per unreadable image and counts them."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def report(self, name: str, error: ImageError) -> None:
        if name not in self._seen:
            self._seen.add(name)
            _log.warning("skipping %s (%d unreadable so far in this process)", error, len(self._seen))


_Ahead = deque[tuple[Record, Image.Image | Jpeg] | None]
"""Records read for a slot whose own record is unreadable; None for those that are."""


class TrainStream(IterableDataset[ImageBatch]):
    """Batches of random crops of one rank, uint8; each loader worker yields every W-th batch of the epoch."""

    def __init__(
        self,
        source: RecordSource,
        *,
        crop: int | CropSchedule,
        batch_size: int,
        epoch_batches: int,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        min_scale: float = 1.0,
        max_scale: float = 1.0,
        flip: bool = True,
        scale_batch: bool = False,
        accumulate: int = 1,
        augment: Augmentations | None = None,
        background: str = "white",
    ) -> None:
        self.source, self.background = source, background
        self.crop = crop if isinstance(crop, CropSchedule) else CropSchedule(crop)
        self.batch_size, self.epoch_batches = batch_size, epoch_batches
        self.seed, self.rank, self.ranks = seed, rank, ranks
        self.min_scale, self.max_scale, self.flip = min_scale, max_scale, flip
        self.scale_batch, self.accumulate = scale_batch, accumulate
        self.augment = augment or Augmentations([])
        # In shared memory: persistent workers read it when an epoch starts.
        self._position = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._bad = _UnreadableImages()

    def seek(self, epoch: int, batch: int, step: int | None = None) -> None:
        """Make the next iteration start at this batch of this epoch.

        Args:
            epoch: the epoch.
            batch: the batch.
            step: the step of this batch, for the schedule of the crop; None: as if all epochs were complete.
        """
        if step is None:
            step = epoch * -(-self.epoch_batches // self.accumulate) + batch // self.accumulate
        self._position.copy_(torch.tensor([epoch, batch, step - batch // self.accumulate]))

    def __iter__(self) -> Iterator[ImageBatch | SettingError]:  # type: ignore[override]
        """Yield batches; an error is yielded, because a worker's exception arrives as a traceback."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        epoch, start, first_step = self._position.tolist()
        try:
            yield from self._batches(epoch, first_step, start + worker, workers)
        except SettingError as error:
            yield error

    def _batches(self, epoch: int, first_step: int, first: int, workers: int) -> Iterator[ImageBatch]:
        # The loader asks worker 0 first, whichever batch it starts with.
        role = first % workers
        consumer, consumers = self.rank * workers + role, self.ranks * workers
        # The batches of a step have one size, so that all take the same time and rate points are balanced.
        steps = self.crop.of_steps(self.seed, epoch, first_step, -(-self.epoch_batches // self.accumulate))
        sides = np.repeat(steps, self.accumulate)[: self.epoch_batches]
        counts = self._images_of(sides)
        slot = int(counts[role:first:workers].sum())
        records = self.source.records(self.seed, epoch, consumer, consumers, slot)
        ahead: _Ahead = deque()
        for batch in range(first, self.epoch_batches, workers):
            side, keys, cuts = int(sides[batch]), [], []
            for _ in range(int(counts[batch])):
                seed = [self.seed, epoch, consumer, consumers, slot]
                key, cut = self._next_cut(ahead, records, side, seed)
                keys.append(key)
                cuts.append(cut)
                slot += 1
            # As uint8: a quarter of the bytes to transfer from the worker to the device.
            yield ImageBatch(stack_levels(cuts), keys)

    def _images_of(self, sides: np.ndarray) -> np.ndarray:
        """Return the images of batches of crops of these sides."""
        if not self.scale_batch:
            return np.full(len(sides), self.batch_size)
        return np.maximum(1, self.batch_size * self.crop.sides[0] ** 2 // sides**2)

    def _next_cut(
        self, ahead: _Ahead, records: Iterator[Record], side: int, seed: list[int]
    ) -> tuple[str, Image.Image]:
        """Return the key and the augmented crop of the next slot.

        Args:
            ahead: the records from that of the slot to the last one taken.
            records: the further ones.
            side: of the crop.
            seed: of the slot.
        """
        while True:
            if not ahead or ahead[-1] is None:
                record, image = next(records), None
                ahead.append(None)
            else:
                record, image = ahead[-1]
            rng = np.random.default_rng(seed)
            try:
                image = record.open(self.background) if image is None else image
                cut = random_crop(image, side, rng, self.min_scale, self.max_scale, self.flip)
            except ImageError as error:
                self._bad.report(str(record), error)
                ahead[-1] = None
            else:
                ahead[-1] = record, image
                ahead.popleft()
                return record.key, self.augment(cut, rng)
            if len(ahead) > _GIVE_UP_AFTER:
                raise RuntimeError(
                    f"data.train: {_GIVE_UP_AFTER} images in a row are unreadable, the last is {record}; "
                    "check the files"
                )


def _identity(batch: Any) -> Any:
    return batch


def outlive_stop_signals(worker: int) -> None:
    """Keep a worker process alive when its process group gets SIGINT or SIGTERM (Ctrl-C, SLURM).

    The training process decides when to stop, after a step that may need more batches. It ends a worker that
    hangs with a second SIGTERM.
    """

    def ignore_once(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ignore_once)


def end_workers_at_exit(loader: DataLoader[Any]) -> None:
    """End a loader's persistent workers when this process exits in the middle of an epoch.

    Otherwise multiprocessing, at the exit, sends each a SIGTERM, which they ignore (`outlive_stop_signals`),
    and waits for them forever.
    """
    reference = weakref.ref(loader)

    def end() -> None:
        iterator: Any = getattr(reference(), "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()

    atexit.register(end)


class TrainLoader(DataLoader[ImageBatch]):
    """Loader of a `TrainStream` whose position is saved and restored exactly, also within an epoch.

    The state is (epoch, batches delivered). It is equal on all ranks, so one copy in a checkpoint serves all,
    and it does not depend on batches that workers have prefetched.

    Args:
        dataset: the stream.
        num_workers: worker processes.
        current_epoch: returns the trainer's epoch, or None without a trainer; then each iteration that
            delivered a batch is followed by the next epoch.
        current_step: returns the trainer's step, or None without a trainer; then all epochs are complete.
        start_worker: called in each worker first, with its number.
    """

    dataset: TrainStream

    def __init__(
        self,
        dataset: TrainStream,
        num_workers: int = 0,
        current_epoch: Callable[[], int | None] = lambda: None,
        current_step: Callable[[], int | None] = lambda: None,
        pin_memory: bool = False,
        start_worker: Callable[[int], None] = outlive_stop_signals,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            collate_fn=_identity,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=start_worker,
            # A generator of its own: starting workers would otherwise advance the global one.
            generator=torch.Generator().manual_seed(dataset.seed),
        )
        self._current_epoch, self._current_step = current_epoch, current_step
        end_workers_at_exit(self)
        self._epoch = 0
        self._delivered = 0
        self._restored: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.dataset.epoch_batches

    def __iter__(self) -> Iterator[ImageBatch]:  # type: ignore[override]
        self._epoch, self._delivered = self._next_position()
        self._restored = None
        self.dataset.seek(self._epoch, self._delivered, self._current_step())
        return self._counted(super().__iter__())

    def _counted(self, batches: Iterator[ImageBatch | SettingError]) -> Iterator[ImageBatch]:
        for batch in batches:
            if isinstance(batch, SettingError):
                raise batch
            self._delivered += 1
            yield batch

    def _next_position(self) -> tuple[int, int]:
        trainer_epoch = self._current_epoch()
        if self._restored is not None:
            epoch, batch = self._restored
            if batch >= len(self):  # saved after an epoch's last batch
                epoch, batch = epoch + 1, 0
            # A trainer that is further ahead ended its epochs early.
            if trainer_epoch is not None and trainer_epoch > epoch:
                return trainer_epoch, 0
            return epoch, batch
        if trainer_epoch is not None:
            return trainer_epoch, 0
        return (self._epoch + 1 if self._delivered else self._epoch), 0

    def _layout(self) -> dict[str, int]:
        stream = self.dataset
        return {
            "seed": stream.seed,
            "ranks": stream.ranks,
            "workers": self.num_workers,
            "batch_size": stream.batch_size,
        }

    def state_dict(self) -> dict[str, Any]:
        """Position and layout as plain integers."""
        epoch, batch = self._restored or (self._epoch, self._delivered)
        random_start = getattr(self.dataset.source, "random_start", False)
        return {"epoch": epoch, "batch": batch, "random_start": random_start, **self._layout()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration resume after the saved batch.

        With another number of workers or ranks, another seed or batch size, it resumes at that position of
        another stream, with a warning.

        Raises:
            ValueError: it is not the state of a training loader.
        """
        if not {"epoch", "batch"} <= state.keys():
            raise ValueError(f"not the state of a training loader: keys {sorted(state)}")
        source, now = self.dataset.source, self._layout()
        if hasattr(source, "random_start"):
            # Runs of 0.1, whose epochs started at the first image of a shard, continue with the same images.
            source.random_start = bool(state.get("random_start", False))
            now["random_start"] = source.random_start  # false where the numbers of images are not known
        changed = [f"{k} was {state.get(k)}, is {v}" for k, v in now.items() if state.get(k, v) != v]
        if changed:
            _log.warning(
                "training data after resuming differ from an uninterrupted run: %s", ", ".join(changed)
            )
        self._restored = int(state["epoch"]), int(state["batch"])


class FixedImages(Dataset[tuple[Tensor, str]]):
    """A fixed list of images, centre-cropped: items are (float32 [3, H, W] in [-1, 1], key).

    An unreadable image is replaced by the next readable one, with a warning, so that all ranks have the same
    number of batches.
    """

    def __init__(
        self, records: Sequence[Record], crop: int | None, stride: int, background: str = "white"
    ) -> None:
        self._records = records
        self._background = background
        self._crop, self._stride = crop, stride
        self._bad = _UnreadableImages()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        for step in range(len(self)):
            record = self._records[(index + step) % len(self)]
            try:
                image = record.decode(self._background)
            except ImageError as error:
                self._bad.report(str(record), error)
                continue
            return to_tensor(centre_crop(image, self._crop, self._stride)), record.key
        raise RuntimeError(
            f"data.val: none of the {len(self)} validation images can be read; check the files"
        )


def collate_images(items: Sequence[tuple[Tensor, str]]) -> ImageBatch:
    """Stack images of one size into a batch."""
    return ImageBatch(torch.stack([x for x, _ in items]), [key for _, key in items])


def random_crop(
    image: Image.Image | Jpeg,
    crop: int,
    rng: np.random.Generator,
    min_scale: float = 1.0,
    max_scale: float = 1.0,
    flip: bool = True,
) -> Image.Image:
    """Scale an image by a random factor and cut out a random square.

    The factor is log-uniform in [min_scale, max_scale]. It is raised where the scaled image would be smaller
    than the crop, so that the short side equals the crop. Uses four samples of `rng`.

    Returns:
        RGB image of crop x crop pixels, mirrored in half of the cases if `flip`.
    """
    u_scale, u_x, u_y, u_flip = rng.random(4)
    scale = min_scale * (max_scale / min_scale) ** u_scale
    scale = max(scale, crop / min(image.size))
    if scale == 1.0:
        left = int(u_x * (image.width - crop + 1))
        top = int(u_y * (image.height - crop + 1))
        cut = image.crop((left, top, left + crop, top + crop))
    else:
        # Resample only the crop: cheaper than scaling the image first.
        side = min(crop / scale, *image.size)
        left, top = u_x * (image.width - side), u_y * (image.height - side)
        box = (left, top, min(left + side, image.width), min(top + side, image.height))
        cut = image.resize((crop, crop), Image.Resampling.BICUBIC, box=box)
    if flip and u_flip < 0.5:
        return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return cut


def centre_crop(image: Image.Image, crop: int | None, stride: int) -> Image.Image:
    """Crop the centre of an image; an image that is too small is scaled up until its short side fits.

    Args:
        image: RGB.
        crop: side of the square to cut, or None for the largest rectangle with sides divisible by `stride`.
        stride: see `crop`.
    """
    least = stride if crop is None else crop
    if min(image.size) < least:
        scale = least / min(image.size)
        width, height = (max(least, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    width, height = (side - side % stride for side in image.size) if crop is None else (crop, crop)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
