"""Images per second of `glc compress --shards` with several processes against one, one thread each.

Times are of complete commands, start-up included; `--full` uses more images.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.codec import weights_of
from benchmarks.loading import sample_shards
from benchmarks.readings import Benchmark, Clock, Reading

SIDE = 224


def benchmarks(args: argparse.Namespace) -> Iterator[Benchmark]:
    """Return the benchmark of compressing shards."""
    weights = weights_of(args, "tiny")
    count, per_shard = (1500, 50) if args.full else (96, 16)
    shards = sample_shards(args.output / "jpegs", count, SIDE, per_shard)
    out = args.output / "compressed"
    yield Benchmark(
        "shards",
        "image",
        f"{weights.name}, {count} images of {SIDE} x {SIDE}, {count // per_shard} shards, complete commands.",
        {
            f"{n} process{'es' * (n > 1)}": partial(compress, shards, count, weights, out, n)
            for n in sorted({1, max(2, args.threads)})
        },
    )


def compress(shards: Path, count: int, weights: Path, out: Path, processes: int) -> Reading:
    """Time one command."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["compress", "--shards", shards, "-o", out, "--model", weights, "--processes", processes]
    command = [sys.executable, "-m", "glc", *map(str, words), "--quiet", "--device", "cpu"]
    clock = Clock(torch.device("cpu"))
    subprocess.run(
        command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    )
    return clock.reading(count)
