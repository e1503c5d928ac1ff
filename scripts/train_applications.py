"""Train the applications of a codec: encoders against noise and for holes, and a decoder for one style.

    python scripts/train_applications.py --codec small --shards data/small --weights WEIGHTS --output runs

`--shards` holds train/ and val/ as `glc pack` writes them, `--weights` LPIPS' networks. The `--minutes` are
shared among what is left to do, and each call goes on where the last one stopped. What is done is written as
`OUTPUT/CODEC-denoise.encoder.safetensors`, `CODEC-inpaint.encoder.safetensors` and
`CODEC-mosaic.decoder.safetensors`, in half precision: in the folder that GLC_MODELS names, they are known as
`--encoder CODEC-denoise` and so on. Without `--style PICTURE` the style is a mosaic made here. Exits with 0
when all is trained, 3 when there is more to do.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from words import number_of

from glc.errors import WeightsError
from glc.io.checkpoint import read_checkpoint
from glc.training.checkpoints import find_whole

MORE = 3
LEAST_MINUTES = 0.5
"""A run is not begun with less: starting up would take most of it."""


class Application(NamedTuple):
    """A run of training and the file that it ends in."""

    name: str
    stage: str
    kind: str
    steps: int
    settings: tuple[str, ...]


APPLICATIONS = (
    Application("denoise", "restoration", "encoder", 6000, ("degradation=gaussian_noise",)),
    Application("inpaint", "restoration", "encoder", 6000, ("degradation=mask",)),
    Application("mosaic", "stylization", "decoder", 3000, ("perceptual.required=true",)),
)


def make_mosaic(path: Path, side: int = 384, seed: int = 0) -> Path:
    """Write a picture of coloured tiles with dark joints, the same for each seed, and return its path."""
    random = np.random.default_rng(seed)
    seeds = random.uniform(0, side, (420, 2))
    colours = np.array([[196, 60, 38], [232, 168, 56], [28, 92, 122], [240, 226, 196], [66, 122, 84]])
    tints = colours[random.integers(0, len(colours), len(seeds))] + random.normal(0, 14, (len(seeds), 3))
    rows, columns = np.mgrid[:side, :side]
    places = np.stack([rows, columns], -1).reshape(-1, 1, 2)
    nearest = np.empty((side * side, 2), np.int64)
    joint = np.empty(side * side, bool)
    for start in range(0, side * side, 8192):
        distance = np.sqrt(((places[start : start + 8192] - seeds) ** 2).sum(-1))
        nearest[start : start + 8192] = np.argsort(distance, 1)[:, :2]
        two = np.sort(np.partition(distance, 1, 1)[:, :2], 1)
        joint[start : start + 8192] = two[:, 1] - two[:, 0] < 2.5
    picture = np.where(joint[:, None], [34, 28, 26], tints[nearest[:, 0]])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8).reshape(side, side, 3)).save(path)
    return path


def state(checkpoint: Path) -> int:
    """Return the steps of a run's checkpoint, of the one before where it is damaged; 0 without any."""
    whole = find_whole(checkpoint.parent)
    return 0 if whole is None else int(read_checkpoint(whole)["global_step"])


def overrides(application: Application, arguments: argparse.Namespace, minutes: float) -> list[str]:
    """Return the configuration of one piece of training."""
    words = [
        f"stage={application.stage}",
        f"init_from={arguments.codec}",
        f"name={arguments.name}-{application.name}",
        "data=shards",
        "resume=auto",
        f"max_minutes={minutes:.2f}",
        f"runs_dir={arguments.output}",
        f"data.train={arguments.shards / 'train'}",
        f"data.val={arguments.shards / 'val'}",
        "data.val_crop=256",
        "data.val_limit=8",
        "data.min_scale=0.5",
        "data.epoch_batches=500",
        f"perceptual.net={arguments.net}",
        f"perceptual.weights_dir={arguments.weights}",
        f"trainer.max_steps={steps_of(application, arguments)}",
        "stage.schedule.warmup=100",
        "stage.schedule.hold=0.3",
        "stage.channels_last=true",
        "callbacks.ema.decay=0.995",
        "callbacks.last.every_n_steps=250",
        *application.settings,
    ]
    if application.stage == "stylization":
        words.append(f"stage.style={arguments.style}")
    if arguments.device == "cuda":
        words += [
            "trainer.accelerator=gpu",
            "trainer.precision=bf16-mixed",
            f"data.num_workers={arguments.workers}",
        ]
    else:
        words += ["trainer.accelerator=cpu", "data.num_workers=0", "data.crop=128", "data.cache=true"]
    return words + arguments.overrides


def steps_of(application: Application, arguments: argparse.Namespace) -> int:
    """Return how many steps an application is trained for."""
    return arguments.steps.get(application.name, application.steps)


def train(arguments: argparse.Namespace) -> int:
    """Train until the time is over or everything is done; return the exit status."""
    end = time.monotonic() + 60 * arguments.minutes
    chosen = [a for a in APPLICATIONS if not arguments.only or a.name in arguments.only]
    left_to_do = []
    for application in chosen:
        checkpoint = _checkpoint(application, arguments)
        if state(checkpoint) < steps_of(application, arguments):
            left_to_do.append(application)
        elif not _file(application, arguments).is_file():
            failed = _export(application, arguments)
            if failed:
                return failed
    while left_to_do:
        minutes = (end - time.monotonic()) / 60 / len(left_to_do)
        if minutes < LEAST_MINUTES:
            return MORE
        application = left_to_do.pop(0)
        command = [sys.executable, "-m", "glc.launch.train", *overrides(application, arguments, minutes)]
        print(f"{application.name}, for {minutes:.1f} minutes at most\n{' '.join(command)}", flush=True)
        failed = subprocess.run(command, check=False).returncode or _export(application, arguments)
        if failed:
            return failed
        done, planned = state(_checkpoint(application, arguments)), steps_of(application, arguments)
        print(f"{application.name}: {done} of {planned} steps", flush=True)
    finished = all(state(_checkpoint(a, arguments)) >= steps_of(a, arguments) for a in chosen)
    return 0 if finished else MORE


def _checkpoint(application: Application, arguments: argparse.Namespace) -> Path:
    run = arguments.output / f"{arguments.name}-{application.name}" / application.stage
    return run / "checkpoints" / "last.ckpt"


def _file(application: Application, arguments: argparse.Namespace) -> Path:
    return arguments.output / f"{arguments.name}-{application.name}.{application.kind}.safetensors"


def _export(application: Application, arguments: argparse.Namespace) -> int:
    """Write what was trained so far, so that a piece of training can be tried."""
    places = [str(_checkpoint(application, arguments)), str(_file(application, arguments))]
    command = [sys.executable, "-m", "glc", "export", *places, "--half", "--force"]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    """Run from the command line; return the exit status."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", default="small", help="weights file or known model (%(default)s)")
    parser.add_argument("--name", help="of runs and files; the codec's by default")
    parser.add_argument("--shards", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="folder with LPIPS' networks")
    parser.add_argument("--net", default="squeeze", help="network of the style's loss (%(default)s)")
    parser.add_argument("--style", type=Path, help="picture of the style; a mosaic by default")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs and the files")
    parser.add_argument("--minutes", type=float, default=30.0, help="of this call (%(default)s)")
    parser.add_argument("--only", action="append", choices=[a.name for a in APPLICATIONS])
    parser.add_argument(
        "--steps",
        type=number_of([a.name for a in APPLICATIONS]),
        action="append",
        default=[],
        metavar="NAME=N",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--workers", type=int, default=8, help="loader processes on a GPU machine")
    parser.add_argument("overrides", nargs="*", help="further settings of the training")
    arguments = parser.parse_args()
    arguments.steps = dict(arguments.steps)
    if Path(arguments.codec).is_file():
        arguments.codec = str(Path(arguments.codec).resolve())
    arguments.name = arguments.name or Path(arguments.codec).stem
    arguments.shards, arguments.weights, arguments.output = (
        path.resolve() for path in (arguments.shards, arguments.weights, arguments.output)
    )
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if arguments.style is None:
            arguments.style = make_mosaic(arguments.output / "mosaic.png")
        elif not arguments.style.is_file():
            raise FileNotFoundError(f"{arguments.style}: no such picture")
        arguments.style = arguments.style.resolve()
        return train(arguments)
    except (OSError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
