"""Crops per second of the training data: shards of JPEGs to float32 batches of 256 x 256.

The baseline is a plain loop: Pillow decodes the complete image, a random square is cropped, and torch
converts it to float. Processor seconds include those of worker processes.
"""

import argparse
import io
import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.readings import Benchmark, Clock, Reading
from glc.data.images import read_rgb
from glc.data.module import ImageDataModule
from glc.data.pack import pack
from glc.data.shards import read_shard
from glc.data.sources import resolve, sample_paths

CROP, BATCH, SIDE = 256, 8, 512
CPU = torch.device("cpu")


def benchmarks(args: argparse.Namespace) -> Iterator[Benchmark]:
    """Return the benchmark of loading."""
    shards = args.shards or str(sample_shards(args.output / "jpegs", 480 if args.full else 240))
    crops = 2400 if args.full else 800
    workers = (0, args.threads) if args.full or args.threads > 1 else (0,)
    sides: dict[str, Callable[[], Reading]] = {"plain loop": partial(plain_loop, shards, crops)}
    for count in workers:
        sides[f"{count} workers"] = partial(ours, shards, crops, count)
    if args.full:
        sides["cached, 0 workers"] = partial(ours, shards, crops, 0, cache=True)
    yield Benchmark(
        "loading",
        "crop",
        f"{CROP} x {CROP} from shards ({Path(shards).name}) in batches of {BATCH}; `plain loop`: one thread.",
        sides,
    )


def sample_shards(folder: Path, count: int, side: int = SIDE, per_shard: int = 120) -> Path:
    """Return a packed set of square JPEGs, crops of the photographs in installed packages."""
    shards = folder / f"sides-{side}-{count}"
    if (shards / "manifest.json").is_file():
        return shards
    generator = random.Random(0)
    photographs = [read_rgb(path) for path in sample_paths("train")]
    images = folder / f"images-{side}-{count}"
    images.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        photograph = generator.choice(photographs)
        cut_side = generator.uniform(0.6, 1) * min(photograph.size)
        left, top = (generator.uniform(0, length - cut_side) for length in photograph.size)
        box = (left, top, left + cut_side, top + cut_side)
        cut = photograph.resize((side, side), Image.Resampling.BICUBIC, box=box)
        cut.save(images / f"{i:04d}.jpg", quality=90)
    pack([images], shards, images_per_shard=per_shard, workers=1, progress=False)
    return shards


def plain_loop(shards: str, crops: int) -> Reading:
    """Load with a plain loop on one thread."""
    urls = resolve(shards, "--shards").shards
    generator = np.random.default_rng(0)
    torch.set_num_threads(1)
    clock = Clock(CPU)
    waiting: list[torch.Tensor] = []
    left = crops
    while left:
        for record in read_shard(urls[generator.integers(len(urls))]):
            assert isinstance(record.data, bytes)
            pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(record.data)).convert("RGB")))
            top, column = (int(generator.integers(side - CROP + 1)) for side in pixels.shape[:2])
            cut = pixels[top : top + CROP, column : column + CROP].permute(2, 0, 1).contiguous()
            if generator.random() < 0.5:
                cut = cut.flip(2)
            waiting.append(cut.float() / 127.5 - 1)
            left -= 1
            if len(waiting) == BATCH:
                torch.stack(waiting)
                waiting.clear()
            if not left:
                break
    return clock.reading(crops)


def ours(shards: str, crops: int, workers: int, cache: bool = False) -> Reading:
    """Load with the DataModule of training."""
    logging.getLogger("glc").setLevel(logging.ERROR)
    module = ImageDataModule(
        train=shards,
        val=shards,
        crop=CROP,
        batch_size=BATCH,
        epoch_batches=crops // BATCH,
        num_workers=workers,
        shuffle=100,
        cache=cache,
    )
    module.setup("fit")
    torch.set_num_threads(1)
    clock = Clock(CPU)
    loader = module.train_dataloader()
    for _ in loader:
        pass
    # Workers end with the iterator; their processor seconds count only after they have ended.
    loader._iterator = None
    return clock.reading(crops)
