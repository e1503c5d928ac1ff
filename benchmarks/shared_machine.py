r"""Compare two checkouts alone and where several processes share the cores. Run it on an idle machine.

    python -m benchmarks.shared_machine CHECKOUT [--rounds 3] [--steps 60] [--only alone,three,...]

CHECKOUT is the other version, such as a git worktree of 0.1. Sides alternate; medians, and their ratio (above
1: this checkout is faster). Nothing is set in the environment: each version chooses how OpenMP threads wait.

- alone: steps per second of one training;
- three: the sum of three trainings, started by three commands at the same time;
- sweep: the same as a sweep with `hydra/launcher=local hydra.launcher.n_jobs=3`;
- workers: one training with two data workers;
- compress: images per second of `glc compress` for one image, start-up included;
- collection, collection2: images per second of `glc compress --shards --processes 2`, of one and two threads;
- suite: 1 / seconds of a part of the tests with two workers.
"""

import argparse
import csv
import os
import shutil
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


class Side:
    """One version: its commands and their speeds.

    Args:
        checkout: the version.
        folder: has the images, and gets the runs.
        shards: of a collection.
        steps: of a training.
    """

    def __init__(self, checkout: Path, folder: Path, shards: Path, steps: int) -> None:
        self.checkout, self.folder, self.shards, self.steps = checkout, folder, shards, steps
        self.runs = folder / ("this" if checkout == HERE else "other")

    def start(self, *words: object) -> "subprocess.Popen[bytes]":
        """Start `python WORDS`; its output goes to a file."""
        environment = {key: value for key, value in os.environ.items() if key not in CHOSEN}
        environment |= {"PYTHONPATH": f"{self.checkout}/src", "WANDB_MODE": "offline", "GLC_OFFLINE": "1"}
        with (self.folder / "output.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *map(str, words)],
                cwd=self.checkout,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def seconds(self, *words: object) -> float:
        """Return the seconds of a command."""
        begin = time.perf_counter()
        self.check(self.start(*words))
        return time.perf_counter() - begin

    def check(self, *programs: "subprocess.Popen[bytes]") -> None:
        """Wait for programs to end; exit if one failed."""
        codes = [program.wait() for program in programs]
        if any(codes):
            raise SystemExit(f"{self.checkout}: a command failed; see {self.folder / 'output.txt'}")

    def training(self, name: str, *more: str) -> list[str]:
        """Return the words of a training in the version's `runs/NAME`, which is deleted first."""
        images = self.folder / "images"
        shutil.rmtree(self.runs / name, ignore_errors=True)
        return [
            *(
                "-m",
                "src.train",
                *(more or ("data.num_workers=0",)),
                "stage=vqvae",
                "model=small",
                "data=folder",
                f"data.train={images}",
            ),
            *(f"data.val={images}", "data.crop=128", "data.val_limit=1", "batch=2", f"name={name}"),
            *(f"runs_dir={self.runs}", "logger=csv", "metrics=none"),
            *("perceptual.required=false", "validate_first=false", f"trainer.max_steps={self.steps}"),
            *("trainer.log_every_n_steps=5", f"data.epoch_batches={self.steps}", "trainer.accelerator=cpu"),
        ]

    def speed(self, *names: str) -> float:
        """Return the sum of the steps per second of runs; of each the median after its first 10 steps."""
        speeds = []
        for name in names:
            for path in (self.runs / name).rglob("metrics.csv"):
                with path.open(newline="") as file:
                    rows = [row for row in csv.DictReader(file) if row.get("train/images_per_second")]
                late = [float(r["train/images_per_second"]) for r in rows if int(r["step"]) >= 10]
                speeds.append(statistics.median(late) / 2)
        return sum(speeds)

    def alone(self) -> float:
        """One training."""
        self.check(self.start(*self.training("alone")))
        return self.speed("alone")

    def workers(self) -> float:
        """One training with two data workers."""
        self.check(self.start(*self.training("workers", "data.num_workers=2")))
        return self.speed("workers")

    def three(self) -> float:
        """Three commands at the same time."""
        names = [f"three{i}" for i in range(3)]
        self.check(*(self.start(*self.training(name)) for name in names))
        return self.speed(*names)

    def sweep(self) -> float:
        """One sweep of three jobs at the same time."""
        words = ("-m", "hydra/launcher=local", "hydra.launcher.n_jobs=3", "seed=0,1,2", "data.num_workers=0")
        self.check(self.start(*self.training("sweep", *words)))
        return self.speed("sweep")

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


NAMES = ("alone", "three", "sweep", "workers", "compress", "collection", "collection2", "suite")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_machine")
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
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
    sides = [Side(path.resolve(), folder, shards, args.steps) for path in (args.other, HERE)]
    print(f"load before the start: {os.getloadavg()[0]:.2f}; cores: {os.cpu_count()}")
    print(f"{'':12} {'other':>9} {'this':>9} {'ratio':>7}", flush=True)
    for name in args.only.split(","):
        measure: list[Callable[[], float]] = [getattr(side, name) for side in sides]
        # The first round of each side warms the caches of the file system and is not counted.
        readings = [[one() for one in measure] for _ in range(args.rounds + 1)][1:]
        other, this = (statistics.median(column) for column in zip(*readings, strict=True))
        print(f"{name:12} {other:9.3f} {this:9.3f} {this / other:7.3f}", flush=True)


if __name__ == "__main__":
    main()
