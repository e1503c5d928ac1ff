r"""Compare two checkouts alone and where several processes share the cores. Run it on an idle machine.

    python -m benchmarks.shared_machine CHECKOUT [--rounds N] [--only alone,three,...]

CHECKOUT is the other version, such as a git worktree of 0.1. Sides alternate; printed are the medians, and
the median of the rounds' ratios (above 1: this checkout is faster). Nothing is set in the environment: each
version chooses how OpenMP threads wait.

- alone: steps per second of one training;
- three: the sum of three training runs, started by three commands at the same time;
- sweep: the same as a sweep with `hydra/launcher=local hydra.launcher.n_jobs=3`;
- compress: images per second of `glc compress` for one image, start-up included.

With `--only` also:

- three1: as three, with one thread each (`OMP_NUM_THREADS=1`), as joblib gives each job of the sweep;
- workers: one training with two data workers;
- collection, collection2: images per second of `glc compress --shards --processes 2`, of one and two threads;
- suite: 1 / seconds of a part of the tests with two workers.

Training runs are measured for 20 seconds, while all of them run, after 10 steps of each, then killed.
"""

import argparse
import csv
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.loading import sample_shards

HERE = Path(__file__).resolve().parents[1]
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
WARM, WINDOW, LIMIT = 10, 20.0, 300.0
"""Steps before the measurement of a training run, its seconds, and the timeout until all of them run."""


class Side:
    """One version: its commands and their speeds.

    Args:
        checkout: the version.
        folder: has the images, and gets the runs.
        shards: of a collection.
    """

    def __init__(self, checkout: Path, folder: Path, shards: Path) -> None:
        self.checkout, self.folder, self.shards = checkout, folder, shards
        self.runs = folder / ("this" if checkout == HERE else "other")

    def start(self, *words: object, **more: str) -> "subprocess.Popen[bytes]":
        """Start `python WORDS` in a process group of its own; its output goes to a file.

        Args:
            words: the command line.
            more: variables of the environment.
        """
        environment = {key: value for key, value in os.environ.items() if key not in CHOSEN}
        environment |= {"PYTHONPATH": f"{self.checkout}/src", "WANDB_MODE": "offline", "GLC_OFFLINE": "1"}
        environment |= more
        with (self.folder / "output.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *map(str, words)],
                cwd=self.checkout,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def seconds(self, *words: object) -> float:
        """Return the seconds of a command; exit if it fails."""
        begin = time.perf_counter()
        if self.start(*words).wait():
            raise self.failure()
        return time.perf_counter() - begin

    def failure(self) -> SystemExit:
        """Return the error for a command that failed."""
        return SystemExit(f"{self.checkout}: a command failed; see {self.folder / 'output.txt'}")

    def training(self, name: str, *more: str) -> list[str]:
        """Return the words of a training in the version's `runs/NAME`, which is deleted first."""
        images = self.folder / "images"
        shutil.rmtree(self.runs / name, ignore_errors=True)
        return [
            *("-m", "src.train", *(more or ("data.num_workers=0",)), "stage=vqvae", "model=small"),
            *("data=folder", f"data.train={images}", f"data.val={images}", "data.crop=128"),
            *("data.val_limit=1", "batch=2", f"name={name}", f"runs_dir={self.runs}", "logger=csv"),
            *("metrics=none", "perceptual.required=false", "validate_first=false"),
            *("trainer.max_steps=100000", "data.epoch_batches=100000", "trainer.log_every_n_steps=1"),
            "trainer.accelerator=cpu",
        ]

    def speed(self, count: int, *commands: list[str], **more: str) -> float:
        """Return the sum of the steps per second of training runs while all of them run.

        Args:
            count: their number.
            commands: the words of each command.
            more: variables of the environment.
        """
        names = {word.removeprefix("name=") for words in commands for word in words if "name=" in word[:5]}
        programs = [self.start(*words, **more) for words in commands]
        begin, end = time.perf_counter(), float("inf")
        seen: dict[Path, list[tuple[float, int]]] = {}
        try:
            while (now := time.perf_counter()) < end:
                if any(program.poll() is not None for program in programs) or now > begin + LIMIT + WINDOW:
                    raise self.failure()
                for path in (p for name in names for p in (self.runs / name).rglob("metrics.csv")):
                    step = last_step(path)
                    if not seen.get(path) or seen[path][-1][1] < step:
                        seen.setdefault(path, []).append((now, step))
                warm = [points for points in seen.values() if points[-1][1] >= WARM]
                if end == float("inf") and len(warm) == count:
                    end = now + WINDOW
                time.sleep(0.2)
        finally:
            for program in programs:
                os.killpg(program.pid, signal.SIGKILL)
                program.wait()
        total = 0.0
        for points in seen.values():
            from_time, from_step = [point for point in points if point[0] <= end - WINDOW][-1]
            total += (points[-1][1] - from_step) / max(points[-1][0] - from_time, WINDOW / 2)
        return total

    def alone(self) -> float:
        """One training."""
        return self.speed(1, self.training("alone"))

    def workers(self) -> float:
        """One training with two data workers."""
        return self.speed(1, self.training("workers", "data.num_workers=2"))

    def three(self) -> float:
        """Three commands at the same time."""
        return self.speed(3, *(self.training(f"three{i}") for i in range(3)))

    def three1(self) -> float:
        """Three commands at the same time, of one thread each."""
        return self.speed(3, *(self.training(f"three{i}") for i in range(3)), OMP_NUM_THREADS="1")

    def sweep(self) -> float:
        """One sweep of three jobs at the same time."""
        words = ("-m", "hydra/launcher=local", "hydra.launcher.n_jobs=3", "seed=0,1,2", "data.num_workers=0")
        return self.speed(3, self.training("sweep", *words))

    def compress(self) -> float:
        """One image."""
        image, out = self.folder / "images" / "0.png", self.folder / "0.glc"
        return 1 / self.seconds("-m", "glc", "compress", image, "-o", out, "--force", "--device", "cpu")

    def collection(self, threads: int = 1) -> float:
        """Shards, with two processes."""
        out = self.folder / "compressed"
        shutil.rmtree(out, ignore_errors=True)
        words = ("compress", "--shards", self.shards, "-o", out, "--processes", 2, "--quiet")
        return 48 / self.seconds("-m", "glc", *words, "--threads", threads, "--device", "cpu")

    def collection2(self) -> float:
        """Shards, with two processes of two threads."""
        return self.collection(2)

    def suite(self) -> float:
        """A part of the tests that both versions have."""
        tests = ("tests/layers", "tests/models", "tests/losses")
        return 1 / self.seconds("-m", "pytest", "-q", "-n", 2, "--dist", "loadscope", *tests)


def last_step(path: Path) -> int:
    """Return the last step of a training's log; -1 before the first."""
    with path.open(newline="") as file:
        return max((int(row["step"]) for row in csv.DictReader(file) if row.get("train/loss")), default=-1)


NAMES = {"alone": 5, "three": 2, "sweep": 2, "compress": 7}
"""Measurements and their rounds."""
MORE = {"three1": 2, "workers": 3, "collection": 3, "collection2": 3, "suite": 3}
"""Measurements that are made when they are named."""
TRAINING_RUNS = ("alone", "three", "three1", "sweep", "workers")


def main() -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `finally` kills the training runs
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_machine")
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--output", type=Path, default=Path("runs/bench/shared_machine"))
    args = parser.parse_args()
    folder = args.output.resolve()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(6):
        coarse = random.integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((768, 512), Image.Resampling.BICUBIC).save(folder / f"images/{i}.png")
    shards = sample_shards(folder / "jpegs", 48, 224, 8)
    sides = [Side(path.resolve(), folder, shards) for path in (args.other, HERE)]
    print(f"load before the start: {os.getloadavg()[0]:.2f}; cores: {os.cpu_count()}")
    print(f"{'':12} {'other':>9} {'this':>9} {'ratio':>7}   ratios of the rounds", flush=True)
    for name in args.only.split(","):
        other, this = (getattr(side, name) for side in sides)
        if name not in TRAINING_RUNS:
            one_round(other, this, 0)  # warms the caches of the file system
        count = args.rounds or {**NAMES, **MORE}[name]
        readings = [one_round(other, this, i) for i in range(count)]
        ratios = [b / a if a else float("nan") for a, b in readings]
        medians = [statistics.median(column) for column in zip(*readings, strict=True)]
        shown = " ".join(f"{ratio:.3f}" for ratio in ratios)
        print(
            f"{name:12} {medians[0]:9.3f} {medians[1]:9.3f} {statistics.median(ratios):7.3f}   {shown}",
            flush=True,
        )


def one_round(other: Callable[[], float], this: Callable[[], float], i: int) -> tuple[float, float]:
    """Measure both sides; in odd rounds this checkout comes first."""
    if i % 2:
        second, first = this(), other()
        return first, second
    return other(), this()


if __name__ == "__main__":
    main()
