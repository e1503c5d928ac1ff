r"""How fast and how frugal the codec is, against its own plain networks and, if given, any other program.

    python benchmarks/codec.py --weights FILE [--picture FILE] [--rounds N] [--threads N] \
        [--precisions auto,float32] [--against "COMMAND"] [--output FOLDER]

Every side runs in a process of its own, the sides in turn, N rounds; ratios are those of the medians, so that
other work on the machine falls on all of them alike. The baseline, `plain`, is `codec.model(x, rate)` in
float32: the networks as they are trained, without a file. A side of the codec is a compress and a decompress
with the file in between, so the entropy model runs twice. Seconds are wall time; processor seconds of all
threads stand beside them; peak memory is that of the process, weights and libraries included.

`--against` names a command that prints, as its last line, JSON with `seconds` (a list of wall and processor
seconds) and `peak_gb`.
"""

import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLAIN = "plain"


def main() -> None:
    """Run all sides, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="weights file of a codec")
    parser.add_argument("--picture", type=Path, help="default: smooth noise of 768 x 512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quality", type=float, default=100 / 3)
    parser.add_argument("--precisions", default="auto,float32,bfloat16")
    parser.add_argument("--against", help="command of another program to run in turn")
    parser.add_argument("--output", type=Path, help="folder for codec.json and codec.md")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if args.side is not None:
        print(json.dumps(run_side(args)))
        return
    sides = [PLAIN, *args.precisions.split(",")] + (["other"] if args.against else [])
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(args.rounds):
        for side in sides:
            found[side].append(measure(args, side))
            print(
                f"round {number + 1}, {side}: {found[side][-1]['total']:.2f} s", file=sys.stderr, flush=True
            )
    report = summarize(found)
    text = table(report)
    print(text)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "codec.json").write_text(json.dumps(report, indent=2) + "\n")
        (args.output / "codec.md").write_text(text + "\n")


def measure(args: argparse.Namespace, side: str) -> dict[str, Any]:
    """Run a side in a process of its own."""
    command = shlex.split(args.against or "")
    if side != "other":
        command = [sys.executable, __file__, "--weights", str(args.weights), "--side", side]
        command += ["--threads", str(args.threads), "--quality", str(args.quality)]
        command += ["--picture", str(args.picture)] if args.picture else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} failed with exit code {done.returncode}: {shlex.join(command)}")
    line = json.loads(done.stdout.splitlines()[-1])
    if side == "other":
        wall, processor = line["seconds"][-1]
        line = {"total": wall, "processor": processor, "peak_gb": line["peak_gb"]}
    return line


def run_side(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one side in this process."""
    import numpy as np
    import torch
    from PIL import Image

    import glc
    from glc.codec.bitstream import RATE_ONE
    from glc.data.images import read_rgb, stack_pictures

    torch.set_num_threads(args.threads)
    if args.picture:
        image = read_rgb(args.picture)
    else:
        coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
        image = Image.fromarray(coarse).resize((768, 512), Image.Resampling.BICUBIC)
    plain = args.side == PLAIN
    codec = glc.load(args.weights, "cpu", precision="float32" if plain else args.side)
    parts: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        parts[name] = time.perf_counter() - start
        return result

    processor = time.process_time()
    if plain:
        stride = codec.model.stride
        x = stack_pictures([image])
        rows, columns = (side // stride * stride for side in x.shape[-2:])
        with torch.inference_mode():
            rate = codec.rate_of(args.quality) / RATE_ONE
            timed("networks", lambda: codec.model(x[..., :rows, :columns], rate))
    else:
        from glc.evaluation.stopwatch import watched

        with watched(codec) as watch:
            data = timed("compress", lambda: codec.compress(image, args.quality))
            timed("decompress", lambda: codec.decompress(data))
            stages = dict(watch.seconds)
        parts["bytes"] = len(data)
    processor = time.process_time() - processor
    total = sum(seconds for name, seconds in parts.items() if name != "bytes")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    made = {"total": total, "processor": processor, "peak_gb": peak, "parts": parts}
    return made if plain else {**made, "stages": stages}


def summarize(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return medians of each side and its ratios to the baseline and to the other program."""
    medians: dict[str, Any] = {}
    for side, rounds in found.items():
        medians[side] = {
            key: statistics.median(each[key] for each in rounds) for key in ("total", "processor", "peak_gb")
        }
        for group in ("parts", "stages"):
            if group in rounds[0]:
                medians[side][group] = {
                    part: statistics.median(each[group][part] for each in rounds) for part in rounds[0][group]
                }
    for each in medians.values():
        for base in (PLAIN, "other"):
            if base in medians:
                each[f"times_as_fast_as_{base}"] = medians[base]["total"] / each["total"]
                each[f"processor_ratio_to_{base}"] = medians[base]["processor"] / each["processor"]
                each[f"memory_of_{base}"] = each["peak_gb"] / medians[base]["peak_gb"]
    return medians


def table(report: dict[str, Any]) -> str:
    """Return the medians as Markdown."""
    bases = [base for base in (PLAIN, "other") if base in report]
    head = ["side", "seconds", "processor seconds", "peak GB"]
    head += [title for base in bases for title in (f"x {base}", f"x {base}, processor", f"memory / {base}")]
    lines = [head, ["---"] * len(head)]
    for side, each in report.items():
        row = [side, f"{each['total']:.2f}", f"{each['processor']:.2f}", f"{each['peak_gb']:.2f}"]
        for base in bases:
            row += [
                f"{each[f'times_as_fast_as_{base}']:.2f}",
                f"{each[f'processor_ratio_to_{base}']:.2f}",
                f"{each[f'memory_of_{base}']:.2f}",
            ]
        lines.append(row)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    stages = {side: each["stages"] for side, each in report.items() if "stages" in each}
    if stages:
        names = list(next(iter(stages.values())))
        rows = [["stage, seconds of both directions", *stages], ["---"] * (len(stages) + 1)]
        rows += [[name, *(f"{each[name]:.2f}" for each in stages.values())] for name in names]
        text += "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return text


if __name__ == "__main__":
    main()
