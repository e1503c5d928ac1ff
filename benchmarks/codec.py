r"""Latency and memory of compress and decompress, with their stages, against the networks in float32.

Every side runs in its own process, so that peak memory is its own, weights and libraries included. The
baseline, `plain`, is `codec.model(x, rate)` in float32, without a file. A side of the codec is a compress and
a decompress with the file in between, so the entropy model runs twice. Its detail `E ... D once` is the time
of compress, g_s and D: the work of `plain` and of other programs, plus the file. On a CPU the first call of a
process counts, as on the command line; on a GPU calls after a warm-up.

`--against` names a command that prints, as its last line, JSON with `seconds` (a list of pairs of wall and
processor seconds, the last of which counts) and `peak_gb`.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.readings import Benchmark, Clock, Reading
from glc.data.images import read_rgb

ROOT = Path(__file__).resolve().parent.parent
PLAIN = "plain"


def benchmarks(args: argparse.Namespace) -> Iterator[Benchmark]:
    """Return the benchmark of the codec."""
    weights = weights_of(args)
    settings = {
        "weights": str(weights.absolute()),
        "image": None if args.image is None else str(args.image.absolute()),
        "quality": args.quality,
        "threads": args.threads,
        "device": str(args.device),
        "warm": 0 if args.device.type == "cpu" else 3,
    }
    names = [PLAIN, *args.precisions.split(",")]
    sides = {name: partial(apart, "benchmarks.codec", {**settings, "side": name}) for name in names}
    if args.against:
        sides["other"] = partial(_other, args.against)
    shown = args.image.name if args.image else "smooth noise of 768 x 512"
    yield Benchmark(
        "codec",
        "image",
        f"{weights.name}, {shown}: compress and decompress; details in seconds. `plain`: the networks in "
        "float32, without a file.",
        sides,
    )


def weights_of(args: argparse.Namespace, model: str | None = None) -> Path:
    """Return `--weights`, or a file of random weights of the requested model."""
    if args.weights is not None:
        return args.weights
    model = model or ("natural" if args.full else "small")
    # Not in --output, which holds results only.
    path = ROOT / "runs" / "bench" / f"{model}.safetensors"
    if not path.is_file():
        from benchmarks.random_weights import random_weights  # imports Hydra, which the sides do not need

        random_weights(path, model)
    return path


def open_image(path: Path | str | None) -> Image.Image:
    """Return an image file, or smooth noise of 768 x 512 if none is given."""
    if path:
        return read_rgb(path)
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize((768, 512), Image.Resampling.BICUBIC)


def apart(module: str, settings: dict[str, Any]) -> Reading:
    """Run a side in its own process."""
    command = [sys.executable, "-m", module, json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{settings['side']} failed with exit code {done.returncode}: {shlex.join(command)}")
    return Reading(**json.loads(done.stdout.splitlines()[-1]))


def _other(command: str) -> Reading:
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"the other program failed with exit code {done.returncode}: {command}")
    line = json.loads(done.stdout.splitlines()[-1])
    wall, processor = line["seconds"][-1]
    return Reading(1, wall, processor, line["peak_gb"])


def measure(settings: dict[str, Any]) -> Reading:
    """Measure one side in this process."""
    import glc
    from glc.codec.bitstream import RATE_ONE
    from glc.data.images import stack_images

    torch.set_num_threads(settings["threads"])
    device = torch.device(settings["device"])
    image = open_image(settings["image"])
    plain = settings["side"] == PLAIN
    codec = glc.load(settings["weights"], device, precision="float32" if plain else settings["side"])
    quality = settings["quality"]

    def networks() -> dict[str, float]:
        stride = codec.model.stride
        x = stack_images([image]).to(device)
        rows, columns = (side // stride * stride for side in x.shape[-2:])
        with torch.inference_mode():
            codec.model(x[..., :rows, :columns], codec.rate_index(quality) / RATE_ONE)
        return {}

    def file() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "image.glc")
            start = time.perf_counter()
            path.write_bytes(codec.compress(image, quality))
            middle = time.perf_counter()
            codec.decompress(path.read_bytes())
            return {"compress": middle - start, "decompress": time.perf_counter() - middle}

    call: Callable[[], dict[str, float]] = networks if plain else file
    for _ in range(settings["warm"]):
        call()
    # Timing stages on a GPU synchronises, which slows the call: there another call times them.
    counted = [call] * 5 if settings["warm"] else [] if plain else [partial(_staged, codec, call)]
    readings = []
    for each in counted or [call]:
        clock = Clock(device)
        details = each()
        readings.append(clock.reading(1, **details))
    reading = readings[-1]
    reading.seconds = statistics.median(each.seconds for each in readings)
    reading.processor = statistics.median(each.processor for each in readings)
    for name in reading.details:
        reading.details[name] = statistics.median(each.details[name] for each in readings)
    if settings["warm"] and not plain:
        reading.details = {**_staged(codec, call), **reading.details}
    return reading


def _staged(codec: Any, call: Callable[[], dict[str, float]]) -> dict[str, float]:
    from glc.evaluation.complexity import watched

    with watched(codec) as watch:
        details = call()
    once = (
        {"E ... D once": details["compress"] + watch.seconds["g_s"] + watch.seconds["D"]} if details else {}
    )
    return {**details, **once, **watch.seconds}


if __name__ == "__main__":
    print(json.dumps(vars(measure(json.loads(sys.argv[1])))))
