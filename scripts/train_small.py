"""Train `small` through its three stages, a piece at a time, and go on where the last piece stopped.

    python scripts/train_small.py --shards data/small --weights WEIGHTS --output runs --minutes 10

`--shards` holds train/ and val/ as `glc pack` writes them, `--weights` LPIPS' networks. Each call trains for
at most so many minutes and leaves `OUTPUT/small/STAGE/checkpoints/last.ckpt`; with `--pieces` also the same
checkpoint cut into files of at most 16 MiB, and a call that finds pieces but no checkpoint puts them together
first. `--steps joint=5000` shortens a stage. When the last stage is done it writes
`OUTPUT/small.safetensors`. Exits with 0 when all is trained, 3 when there is more to do.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from words import number_of

from glc.training.checkpoints import open_last

STAGES = ("vqvae", "transform", "joint")
PIECE = 16 * 2**20
MORE = 3
LEAST_MINUTES = 1.0
"""A stage is not begun with less: starting up would take most of it."""


def split(checkpoint: Path, folder: Path) -> None:
    """Cut a file into pieces of at most 16 MiB with an index of their checksum; older pieces go last."""
    data = checkpoint.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for start in range(0, len(data), PIECE):
        names.append(f"{digest[:12]}-{start // PIECE:03d}.part")
        (folder / names[-1]).write_bytes(data[start : start + PIECE])
    fresh = folder / "index.json.tmp"
    fresh.write_text(json.dumps({"sha256": digest, "pieces": names}, indent=1) + "\n")
    fresh.rename(folder / "index.json")
    for old in set(folder.glob("*.part")) - {folder / name for name in names}:
        old.unlink()


def join(folder: Path, checkpoint: Path) -> None:
    """Put the pieces of `split` together.

    Raises:
        ValueError: when a piece is missing or the checksum is another.
    """
    index = json.loads((folder / "index.json").read_text())
    missing = [name for name in index["pieces"] if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: {missing[0]} is missing; copy all the pieces that index.json names")
    data = b"".join((folder / name).read_bytes() for name in index["pieces"])
    if hashlib.sha256(data).hexdigest() != index["sha256"]:
        raise ValueError(
            f"{folder}: the pieces do not make the checkpoint that index.json names; copy them again"
        )
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    fresh = checkpoint.with_suffix(".tmp")
    fresh.write_bytes(data)
    fresh.rename(checkpoint)


def state(checkpoint: Path) -> tuple[int, int]:
    """Return the steps that a run has done and is to do; (0, 1) without a checkpoint.

    Where the checkpoint is damaged, the one before takes its place.
    """
    last = open_last(checkpoint.parent)
    return (0, 1) if last is None else (last.step, int(last.settings["trainer"]["max_steps"]))


def overrides(stage: str, arguments: argparse.Namespace, minutes: float) -> list[str]:
    """Return the configuration of one piece of training."""
    words = [
        "experiment=small",
        f"stage={stage}",
        "name=small",
        "resume=auto",
        f"max_minutes={minutes:.2f}",
        f"runs_dir={arguments.output}",
        f"data.train={arguments.shards / 'train'}",
        f"data.val={arguments.shards / 'val'}",
        f"perceptual.weights_dir={arguments.weights}",
    ]
    if stage in arguments.steps:
        words.append(f"trainer.max_steps={arguments.steps[stage]}")
    if arguments.device == "cuda":
        words += ["trainer.accelerator=gpu", f"data.num_workers={arguments.workers}", "data.cache=false"]
    elif arguments.device == "cpu":
        words.append("trainer.accelerator=cpu")
    return words + arguments.overrides


def train(arguments: argparse.Namespace) -> int:
    """Train until the time is over or the last stage is done; return the exit status."""
    end = time.monotonic() + 60 * arguments.minutes
    for stage in STAGES:
        checkpoint = arguments.output / "small" / stage / "checkpoints" / "last.ckpt"
        pieces = arguments.output / "small" / stage / "pieces"
        if not checkpoint.is_file() and (pieces / "index.json").is_file():
            join(pieces, checkpoint)
        done, planned = state(checkpoint)
        if done >= arguments.steps.get(stage, planned):
            print(f"{stage}: all {done} steps are done", flush=True)
            continue
        left = (end - time.monotonic()) / 60
        if left < LEAST_MINUTES:
            return MORE
        command = [sys.executable, "-m", "glc.launch.train", *overrides(stage, arguments, left)]
        print(f"{stage}: from step {done}, for {left:.1f} minutes at most\n{' '.join(command)}", flush=True)
        failed = subprocess.run(command, check=False).returncode
        if failed:
            return failed
        if arguments.pieces:
            split(checkpoint, pieces)
        done, planned = state(checkpoint)
        print(f"{stage}: {done} of {planned} steps", flush=True)
        if done < planned:
            return MORE
    weights = arguments.output / "small.safetensors"
    command = [sys.executable, "-m", "glc", "export", str(checkpoint), str(weights), "--half", "--force"]
    if arguments.photos is not None:
        command += ["--photos", str(arguments.photos)]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shards", type=Path, required=True, help="folder with train/ and val/, made by glc pack"
    )
    parser.add_argument(
        "--weights", type=Path, required=True, help="folder with LPIPS' SqueezeNet and AlexNet"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--minutes", type=float, default=10.0, help="of this piece (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--workers", type=int, default=8, help="loader processes on a GPU machine (%(default)s)"
    )
    parser.add_argument("--steps", type=number_of(STAGES), action="append", default=[], metavar="STAGE=N")
    parser.add_argument("--photos", type=Path, help="folder of photographs to count the hyper codes on")
    parser.add_argument("--pieces", action="store_true", help="also leave the checkpoint in files of 16 MiB")
    parser.add_argument("overrides", nargs="*", help="further settings of the training")
    arguments = parser.parse_args()
    arguments.steps = dict(arguments.steps)
    arguments.shards, arguments.weights, arguments.output = (
        path.resolve() for path in (arguments.shards, arguments.weights, arguments.output)
    )
    if arguments.device == "auto" and torch.cuda.is_available():
        arguments.device = "cuda"
    try:
        return train(arguments)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
