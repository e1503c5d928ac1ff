"""Images per second of a folder, file to file in both directions, one by one and in batches.

The baseline reads, codes and writes one image after the other, as `glc compress FOLDER` does on a CPU; on a
GPU that command reads and writes in threads.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.codec import apart, weights_of
from benchmarks.readings import Benchmark, Clock, Reading

SIZE = (256, 256)
BATCH = 8


def benchmarks(args: argparse.Namespace) -> Iterator[Benchmark]:
    """Return the benchmark of a folder."""
    weights = weights_of(args)
    on_gpu = args.device.type != "cpu"
    settings = {
        "weights": str(weights.absolute()),
        "threads": args.threads,
        "device": str(args.device),
        "quality": args.quality,
        "count": 64 if on_gpu else 24 if args.full else 8,
    }
    names = ("one by one", "files in threads", f"batches of {BATCH}")
    yield Benchmark(
        "folder",
        "image",
        f"{weights.name}, PNG files of {SIZE[0]} x {SIZE[1]} to .glc files and back. Batches read and write "
        "in threads too.",
        {name: partial(apart, "benchmarks.folder", {**settings, "side": name}) for name in names},
    )


def measure(settings: dict[str, Any]) -> Reading:
    """Measure one side in this process."""
    import numpy as np
    from PIL import Image

    import glc
    from glc.data.images import read_rgb

    torch.set_num_threads(settings["threads"])
    device = torch.device(settings["device"])
    codec = glc.load(settings["weights"], device)
    generator = np.random.default_rng(0)
    quality, side = settings["quality"], settings["side"]
    batch = BATCH if side.startswith("batches") else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / f"{i:03d}.png" for i in range(settings["count"])]
        for path in paths:
            coarse = generator.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(path)
        # Warm-up: one-time work such as transforming weights.
        codec.decompress(codec.compress(read_rgb(paths[0]), quality))
        clock = Clock(device)
        with ThreadPoolExecutor(1 if side == "one by one" else 2) as pool:

            def ahead(function: Any, items: list[Any]) -> Iterator[Any]:
                return map(function, items) if side == "one by one" else pool.map(function, items)

            jobs = []
            for group, images in grouped(ahead(read_rgb, paths), paths, batch):
                for path, data in zip(group, codec.compress_batch(images, quality), strict=True):
                    path.with_suffix(".glc").write_bytes(data)
            middle = clock.reading(1).seconds
            files = [path.with_suffix(".glc") for path in paths]
            for group, found in grouped(ahead(Path.read_bytes, files), files, batch):
                for path, image in zip(group, codec.decompress_batch(found), strict=True):
                    out = path.with_suffix(".out.png")
                    if side == "one by one":
                        image.save(out)
                    else:
                        jobs.append(pool.submit(image.save, out))
            for job in jobs:
                job.result()
        reading = clock.reading(len(paths))
    each = 1 / len(paths)
    reading.details = {"compress": middle * each, "decompress": (reading.seconds - middle) * each}
    return reading


def grouped(items: Iterator[Any], names: list[Path], size: int) -> Iterator[tuple[list[Path], list[Any]]]:
    """Return the items, with their names, in groups."""
    for start in range(0, len(names), size):
        group = names[start : start + size]
        yield group, [next(items) for _ in group]


if __name__ == "__main__":
    print(json.dumps(vars(measure(json.loads(sys.argv[1])))))
