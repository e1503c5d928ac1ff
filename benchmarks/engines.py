"""Items per second that the engines of `glc.jobs` schedule: empty tasks, and shards of one sample.

Ray, where it is installed, on a cluster of this machine that is started before.
"""

import argparse
import shutil
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.readings import Benchmark, Clock, Reading
from glc.jobs.engines import Engine, Progress, Report
from glc.jobs.tar_shards import closing_bytes, find_shards, member_bytes
from glc.jobs.worker import FileProcessor, Processed, run_shards


class Nothing:
    """A worker whose items are empty."""

    def run_one(self, item: int, report: Report) -> int:
        """Return the item."""
        return item


class Copy(FileProcessor):
    """Copies the first file of each sample."""

    def accepts(self, name: str) -> bool:
        """Whether it is a text."""
        return name.endswith(".txt")

    def process_file(self, data: bytes, name: str) -> Processed:
        """Return the file."""
        return Processed([("txt", data)])


def benchmarks(args: argparse.Namespace) -> Iterator[Benchmark]:
    """Return the benchmarks of the schedulers."""
    engines = {"local, 1 process": Engine(threads=1)}
    engines["local, 2 processes"] = Engine(processes=2, threads=1)
    if find_spec("ray") is not None:
        import ray

        ray.init(num_cpus=2, logging_level="ERROR", log_to_driver=False, ignore_reinit_error=True)
        engines["ray, 2 CPUs"] = Engine("ray", threads=1)
    count = 5000 if args.full else 1000
    yield Benchmark(
        "empty_tasks",
        "task",
        f"{count} tasks that return their number; starting the processes is part of the time, Ray's is not.",
        {name: partial(empty_tasks, engine, count) for name, engine in engines.items()},
    )
    count = 400 if args.full else 100
    folder = args.output / "one_sample"
    folder.mkdir(parents=True, exist_ok=True)
    member = member_bytes("0.txt", b"a text")
    for i in range(count):
        (folder / f"in-{i:06d}.tar").write_bytes(member + closing_bytes(len(member)))
    yield Benchmark(
        "small_shards",
        "shard",
        f"{count} shards of one text, which is copied: reading, writing, syncing and publishing a shard.",
        {
            name: partial(small_shards, engine, folder, args.output / "copied")
            for name, engine in engines.items()
        },
    )


def empty_tasks(engine: Engine, count: int) -> Reading:
    """Time empty tasks."""
    clock = Clock(torch.device("cpu"))
    assert sum(1 for _ in engine.run(_nothing, range(count), Progress())) == count
    return clock.reading(count)


def small_shards(engine: Engine, folder: Path, out: Path) -> Reading:
    """Time a job over shards."""
    shutil.rmtree(out, ignore_errors=True)
    shards = find_shards([str(folder)])
    clock = Clock(torch.device("cpu"))
    run_shards(shards, out, {}, _copy, engine, quiet=True)
    return clock.reading(len(shards))


def _nothing(local_rank: int) -> Nothing:
    return Nothing()


def _copy(local_rank: int) -> Copy:
    return Copy()
