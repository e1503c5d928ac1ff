r"""Compare two versions of glc: training, coding, memory. Run it on an idle machine.

    python -m benchmarks.versions [CHECKOUT] [--rounds N] [--only targets|alone,three,...] [--weights FOLDER]

CHECKOUT is the other version; without it, a worktree of 0.1 is made in the output folder. `--only targets`
measures what docs/performance.md states against 0.1, beside the ratios that 0.2 aims at. Sides alternate;
printed are the medians, and the ratio (above 1: this checkout is faster, or needs less memory). Nothing is
set in the environment: each version chooses how OpenMP threads wait.

Training runs of both sides start once and then run in turn, for five seconds each, while those of the other
side are stopped (SIGSTOP): the speed of a machine changes more within a minute than the versions differ. Each
turn of both is a round; its ratio is that of all rounds until then.

- alone: steps per second of one training;
- three: the sum of three training runs, started by three commands at the same time;
- sweep: the same as a sweep with `hydra/launcher=local hydra.launcher.n_jobs=3`;
- compress: images per second of `glc compress` for one image, start-up included.

With `--only` also:

- vqvae, transform, joint: steps per second of a stage of 0.1's `small`, in batches of 8;
  with LPIPS if `--weights` names a folder with its SqueezeNet and AlexNet;
- compress_small, decompress_small: images per processor second of `small` in a running process, 768 x 512;
- folder24, folder24_back: images per second of `glc compress FOLDER` and `glc decompress FOLDER`, 24 images;
- target: processor seconds at a fixed quality per processor second with a target rate, 768 x 512;
- optimize: compressions with ten steps of latent optimisation per processor second, 768 x 512;
- loading, loading_small: training crops per processor second, no workers: 256 of 512 x 512 pixels; 128 as
  `small` crops them, scaled by 0.5 to 1;
- large, large_back: 1 / peak GB of 8192 x 8192 pixels, with `small` and `--memory 2GB` (8GB where a version
  refuses that); the seconds are printed too;

- three1: as three, with one thread each (`OMP_NUM_THREADS=1`), as joblib gives each job of the sweep;
- workers: one training with two data workers;
- collection, collection2: images per second of `glc compress --shards --processes 2`, of one and two threads;
- collection1: the same with one process of one thread;
- suite: 1 / seconds of a part of the tests with two workers.

Training runs are measured after 10 steps of each, then killed.
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
from contextlib import suppress
from pathlib import Path

from PIL import Image

from benchmarks.loading import sample_shards
from glc.data.images import read_rgb
from glc.data.sources import sample_paths

HERE = Path(__file__).resolve().parents[1]
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
WARM, WINDOW, LIMIT = 10, 5.0, 300.0
"""Steps of a training run before its measurement, seconds of a turn, timeout of the first steps."""
IMAGES = 160
"""Images of a collection."""


PREPARE = """
import sys, time
import glc
from PIL import Image
codec, image = glc.load("small"), Image.open(sys.argv[1]).convert("RGB")

def seconds(run, rounds=5):
    run()
    start = time.process_time()
    for _ in range(rounds):
        run()
    return (time.process_time() - start) / rounds

"""
"""Start of the code that `Side.printed` runs, in any version."""
OPTIMIZE = """
try:
    from glc.latent_optimization import LatentOptimizer
except ImportError:  # 0.1
    from glc.effort import Effort as LatentOptimizer
    codec = glc.load("small", "cpu")
    option = "effort"
else:
    codec = glc.load("small", "cpu", backend="torch")
    option = "optimize_latent"
search = LatentOptimizer(10, weights_dir=sys.argv[2])
print(1 / seconds(lambda: codec.compress(image, 50, **{option: search}), 1))
"""
LOADING = """
import logging, torch
from glc.data.module import ImageDataModule
logging.getLogger("glc").setLevel(logging.ERROR)
torch.set_num_threads(1)
module = ImageDataModule(
    train=SHARDS, val=SHARDS, crop=CROP, min_scale=SCALE,
    batch_size=8, epoch_batches=30, num_workers=0, shuffle=100,
)
module.setup("fit")
loader = module.train_dataloader()
print(240 / seconds(lambda: [None for _ in loader], 1))
"""


class Side:
    """One version: its commands and their speeds.

    Args:
        checkout: the version.
        folder: has the images, and gets the runs.
        shards: of a collection, and for training.
        weights: folder of LPIPS' networks.
    """

    def __init__(self, checkout: Path, folder: Path, shards: Path, weights: Path | None = None) -> None:
        self.checkout, self.folder, self.shards, self.weights = checkout, folder, shards, weights
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
            *("trainer.max_steps=100000", "data.epoch_batches=100000", "trainer.log_every_n_steps=5"),
            "trainer.accelerator=cpu",
        ]

    def alone(self) -> "Runs":
        """One training."""
        return Runs(self, 1, self.training("alone"))

    def workers(self) -> "Runs":
        """One training with two data workers."""
        return Runs(self, 1, self.training("workers", "data.num_workers=2"))

    def three(self) -> "Runs":
        """Three commands at the same time."""
        return Runs(self, 3, *(self.training(f"three{i}") for i in range(3)))

    def three1(self) -> "Runs":
        """Three commands at the same time, of one thread each."""
        return Runs(self, 3, *(self.training(f"three{i}") for i in range(3)), OMP_NUM_THREADS="1")

    def sweep(self) -> "Runs":
        """One sweep of three jobs at the same time."""
        words = ("-m", "hydra/launcher=local", "hydra.launcher.n_jobs=3", "seed=0,1,2", "data.num_workers=0")
        return Runs(self, 3, self.training("sweep", *words))

    def compress(self) -> float:
        """One image."""
        image, out = self.folder / "images" / "0.png", self.folder / "0.glc"
        return 1 / self.seconds("-m", "glc", "compress", image, "-o", out, "--force", "--device", "cpu")

    def collection(self, threads: int = 1, processes: int = 2) -> float:
        """Shards, by default with two processes of one thread."""
        out = self.folder / "compressed"
        shutil.rmtree(out, ignore_errors=True)
        words = ("compress", "--shards", self.shards, "-o", out, "--processes", processes, "--quiet")
        return IMAGES / self.seconds("-m", "glc", *words, "--threads", threads, "--device", "cpu")

    def collection1(self) -> float:
        """Shards, with one process."""
        return self.collection(processes=1)

    def collection2(self) -> float:
        """Shards, with two processes of two threads."""
        return self.collection(2)

    def stage(self, name: str) -> "Runs":
        """A stage of `small` with its own settings."""
        shutil.rmtree(self.runs / name, ignore_errors=True)
        lpips = [f"perceptual.weights_dir={self.weights}"] if self.weights else ["perceptual.required=false"]
        # 0.1's stage III is called small_lpips now.
        renamed = (self.checkout / "conf" / "experiment" / "small_lpips.yaml").is_file()
        words = [
            *("-m", "src.train", f"experiment={'small_lpips' if renamed else 'small'}"),
            *(f"stage={name}", f"name={name}", f"runs_dir={self.runs}"),
            *(f"data.train={self.shards}", f"data.val={self.shards}", "data.num_workers=0", "init_from=none"),
            *("metrics=none", "logger=csv", "validate_first=false", "data.val_limit=1", "data.crop=128"),
            *("trainer.max_steps=100000", "data.epoch_batches=100000", "trainer.log_every_n_steps=1"),
            *("trainer.accelerator=cpu", "callbacks.codebooks=null", *lpips),
        ]
        if name != "transform":
            words.append("stage.discriminator_start=0")
        return Runs(self, 1, words)

    def vqvae(self) -> "Runs":
        """Stage I of `small`."""
        return self.stage("vqvae")

    def transform(self) -> "Runs":
        """Stage II of `small`."""
        return self.stage("transform")

    def joint(self) -> "Runs":
        """Stage III of `small`."""
        return self.stage("joint")

    def printed(self, code: str) -> float:
        """Return the number that Python code prints last."""
        image = str(self.folder / "images" / "0.png")
        with (self.folder / "output.txt").open("ab") as log:
            done = subprocess.run(
                [sys.executable, "-c", PREPARE + code, image, str(self.weights)],
                cwd=self.checkout,
                env={**os.environ, "PYTHONPATH": f"{self.checkout}/src", "GLC_OFFLINE": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        if done.returncode:
            raise self.failure()
        return float(done.stdout.split()[-1])

    def compress_small(self) -> float:
        """One image after the other in a running process."""
        return self.printed("print(1 / seconds(lambda: codec.compress(image, 50)))")

    def decompress_small(self) -> float:
        """One file after the other in a running process."""
        return self.printed(
            "data = codec.compress(image, 50); print(1 / seconds(lambda: codec.decompress(data)))"
        )

    def target(self) -> float:
        """A target rate against a fixed quality."""
        return self.printed(
            "print(seconds(lambda: codec.compress(image, 50))"
            " / seconds(lambda: codec.compress(image, target_bpp=0.04)))"
        )

    def optimize(self) -> float:
        """Ten steps of latent optimisation."""
        return self.printed(OPTIMIZE)

    def loading(self, crop: int = 256, scale: float = 1.0) -> float:
        """Training data."""
        shards = str(sample_shards(self.folder / "jpegs", 240))
        settings = f"SHARDS, CROP, SCALE = {shards!r}, {crop}, {scale}"
        return self.printed(settings + LOADING)

    def loading_small(self) -> float:
        """Training data of `small`."""
        return self.loading(128, 0.5)

    def complete(self, direction: str) -> float:
        """A folder of 24 images."""
        images, files = self.folder / "twenty-four", self.runs / "files"
        images.mkdir(exist_ok=True)
        for i in range(24):
            shutil.copy(self.folder / "images" / f"{i % 6}.png", images / f"{i}.png")
        words = {
            "compress": ("compress", images, "-o", files),
            "decompress": ("decompress", files, "-o", self.runs / "decoded"),
        }[direction]
        return 24 / self.seconds("-m", "glc", *words, "--force", "--quiet", "--device", "cpu")

    def folder24(self) -> float:
        """A folder of images."""
        return self.complete("compress")

    def folder24_back(self) -> float:
        """A folder of files."""
        return self.complete("decompress")

    def peak(self, *words: object) -> float:
        """Return 1 / peak memory in GB of a command; its seconds go to the standard error."""
        begin = time.perf_counter()
        program = self.start("-m", "glc", *words, "--force", "--quiet", "--device", "cpu")
        _, status, used = os.wait4(program.pid, 0)
        if status:
            raise self.failure()
        print(f"{self.runs.name}: {words[0]} {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        return 1e6 / used.ru_maxrss

    def limited(self, *words: object) -> float:
        """The same within 2 GB, or within 8 GB if the version refuses that."""
        try:
            return self.peak(*words, "--memory", "2GB")
        except SystemExit:
            return self.peak(*words, "--memory", "8GB")

    def large(self) -> float:
        """Compress 8192 x 8192 pixels."""
        image = self.folder / "large.png"
        if not image.exists():
            with Image.open(self.folder / "images" / "0.png") as small:
                small.resize((8192, 8192), Image.Resampling.BICUBIC).save(image)
        return self.limited("compress", image, "-o", self.runs / "large.glc")

    def large_back(self) -> float:
        """Decompress the file."""
        return self.limited("decompress", self.runs / "large.glc", "-o", self.runs / "large.png")

    def suite(self) -> float:
        """A part of the tests that both versions have."""
        tests = ("tests/layers", "tests/models", "tests/losses")
        return 1 / self.seconds("-m", "pytest", "-q", "-n", 2, "--dist", "loadscope", *tests)


class Runs:
    """Training runs of a side, stopped after their first steps.

    Args:
        side: their version.
        count: their number.
        commands: the words of each command.
        more: variables of the environment.
    """

    def __init__(self, side: Side, count: int, *commands: list[str], **more: str) -> None:
        self.seconds, self._side = 0.0, side
        self._names = {w.removeprefix("name=") for words in commands for w in words if w.startswith("name=")}
        self._programs = [side.start(*words, **more) for words in commands]
        begin = time.perf_counter()
        try:
            while len(steps := self._steps()) < count or min(steps) < WARM:
                if time.perf_counter() > begin + LIMIT:
                    raise side.failure()
                time.sleep(0.2)
            self._first = sum(steps)
        except BaseException:
            self.end()
            raise
        self._signal(signal.SIGSTOP)

    def turn(self) -> None:
        """Run for `WINDOW` seconds."""
        begin = time.perf_counter()
        self._signal(signal.SIGCONT)
        time.sleep(WINDOW)
        self._signal(signal.SIGSTOP)
        self.seconds += time.perf_counter() - begin

    def speed(self) -> float:
        """Return the sum of the runs' steps per second in all turns."""
        return (sum(self._steps()) - self._first) / self.seconds

    def end(self) -> None:
        """Kill the runs."""
        self._signal(signal.SIGKILL)
        for program in self._programs:
            program.wait()

    def _steps(self) -> list[int]:
        if any(program.poll() is not None for program in self._programs):
            raise self._side.failure()
        return [last_step(p) for name in self._names for p in (self._side.runs / name).rglob("metrics.csv")]

    def _signal(self, number: signal.Signals) -> None:
        for program in self._programs:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, number)


def take_turns(other: Callable[[], Runs], this: Callable[[], Runs], rounds: int) -> list[tuple[float, float]]:
    """Return the speeds of both sides after each round of turns."""
    sides: list[Runs] = []
    try:
        for start in (other, this):
            sides.append(start())
        found = []
        for _ in range(rounds):
            for runs in sides:
                runs.turn()
            found.append((sides[0].speed(), sides[1].speed()))
        return found
    finally:
        for runs in sides:
            runs.end()


def last_step(path: Path) -> int:
    """Return the last step of a training's log; -1 before the first."""
    with path.open(newline="") as file:
        return max((int(row["step"]) for row in csv.DictReader(file) if row.get("train/loss")), default=-1)


NAMES = {"alone": 20, "three": 20, "sweep": 20, "compress": 7}
"""Measurements and their rounds."""
MORE = {"three1": 20, "workers": 20, "collection": 5, "collection1": 5, "collection2": 5, "suite": 3}
MORE |= {"vqvae": 20, "transform": 20, "joint": 20, "compress_small": 3, "decompress_small": 3, "target": 3}
MORE |= {
    "optimize": 1,
    "loading": 5,
    "loading_small": 5,
    "folder24": 3,
    "folder24_back": 3,
    "large": 1,
    "large_back": 1,
}
"""Measurements that are made when they are named."""
FIRST_VERSION = "431a6bb"
TARGETS = dict.fromkeys(("vqvae", "transform", "joint"), 1.6) | {
    **dict.fromkeys(("compress_small", "decompress_small", "folder24", "folder24_back"), 1 / 0.6),
    **{"target": 3.0 / 1.6, "optimize": 2.0, "loading": 1.5, "large": 3.5 / 2, "large_back": 6.8 / 2},
}
"""Ratios to 0.1 that 0.2 aims at."""
TRAINING_RUNS = ("alone", "three", "three1", "sweep", "workers", "vqvae", "transform", "joint")


def main() -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `finally` kills the training runs
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions")
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--weights", type=Path, help="folder of LPIPS' networks; without it without LPIPS")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/versions"))
    args = parser.parse_args()
    folder = args.output.resolve()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i, path in enumerate(sample_paths("train")[:6]):
        read_rgb(path).resize((768, 512), Image.Resampling.BICUBIC).save(folder / f"images/{i}.png")
    shards = sample_shards(folder / "jpegs", IMAGES, 224, 8)
    weights = args.weights and args.weights.resolve()
    checkout = (args.other or first_version(folder / "0.1")).resolve()
    sides = [Side(path, folder, shards, weights) for path in (checkout, HERE)]
    print(f"load before the start: {os.getloadavg()[0]:.2f}; cores: {os.cpu_count()}")
    print(f"{'':16} {'other':>9} {'this':>9} {'ratio':>7} {'target':>7}   ratios of the rounds", flush=True)
    for name in TARGETS if args.only == "targets" else args.only.split(","):
        other, this = (getattr(side, name) for side in sides)
        count = args.rounds or {**NAMES, **MORE}[name]
        if name in TRAINING_RUNS:
            readings = take_turns(other, this, count)
            ends = readings[-1]
        else:
            one_round(other, this, 0)  # warms the caches of the file system
            readings = [one_round(other, this, i) for i in range(count)]
            ends = tuple(statistics.median(column) for column in zip(*readings, strict=True))
        ratios = [b / a if a else float("nan") for a, b in readings]
        ratio = ratios[-1] if name in TRAINING_RUNS else statistics.median(ratios)
        shown = " ".join(f"{ratio:.3f}" for ratio in ratios)
        target = f"{TARGETS[name]:7.2f}" if name in TARGETS else " " * 7
        print(f"{name:16} {ends[0]:9.3f} {ends[1]:9.3f} {ratio:7.3f} {target}   {shown}", flush=True)


def first_version(folder: Path) -> Path:
    """Return a checkout of 0.1, of this repository's history."""
    if not folder.is_dir():
        command = ["git", "-C", HERE, "worktree", "add", "--detach", "--force", folder, FIRST_VERSION]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def one_round(other: Callable[[], float], this: Callable[[], float], i: int) -> tuple[float, float]:
    """Measure both sides; in odd rounds this checkout comes first."""
    if i % 2:
        second, first = this(), other()
        return first, second
    return other(), this()


if __name__ == "__main__":
    main()
