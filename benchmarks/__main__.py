r"""Measure speed and memory: alternating sides, medians, ratios to a baseline of the same run.

    python -m benchmarks [NAME ...] [--full] [--device D] [--threads N] [--rounds N] [--output FOLDER] \
        [--resume]

Names: codec, folder, loading, entropy, training (the default: all of these), shards, engines, profile,
rate_cost. Each writes NAME.json and NAME.md to FOLDER. `--resume` skips benchmarks, and single readings of an
interrupted one (NAME.readings.json), that FOLDER has with the same settings. The short form takes three
minutes on two idle cores; `--full` uses the paper's sizes.
"""

import argparse
import importlib
import sys
from pathlib import Path

import torch

from benchmarks.readings import is_done, run, table, write

NAMES = ("codec", "folder", "loading", "entropy", "training")
WHEN_NAMED = ("shards", "engines", "profile", "rate_cost")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(NAMES)} (the default is all of them), {', '.join(WHEN_NAMED)}",
    )
    parser.add_argument("--full", action="store_true", help="the paper's sizes, more rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="default: 2, with --full 5")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    parser.add_argument("--resume", action="store_true", help="skip what FOLDER already has")
    parser.add_argument("--weights", type=Path, help="weights file; default: random weights")
    parser.add_argument("--image", type=Path, help="codec, profile: default: smooth noise of 768 x 512")
    parser.add_argument("--images", type=Path, help="rate_cost: folder of images")
    parser.add_argument("--limit", type=int, help="rate_cost: number of images; default: all")
    parser.add_argument("--precisions", default="auto,float32,bfloat16", help="codec: sides")
    parser.add_argument("--quality", type=float, default=100 / 3, help="codec, folder, profile")
    parser.add_argument("--against", help="codec: command of another program to compare with")
    parser.add_argument(
        "--shards", help="loading: shards of JPEGs; default: crops of photographs in installed packages"
    )
    parser.add_argument("--stages", default="vqvae,transform,joint", help="training")
    parser.add_argument("--model", help="training: name in conf/model; default: small, with --full natural")
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.names) - {*NAMES, *WHEN_NAMED})
    if unknown:
        parser.error(f"unknown benchmark: {', '.join(unknown)}; choose from {', '.join(NAMES + WHEN_NAMED)}")
    for key in ("rounds", "threads"):
        if (value := getattr(args, key)) is not None and value < 1:
            parser.error(f"--{key} must be at least 1")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: no GPU available")
    args.rounds = args.rounds or (5 if args.full else 2)
    args.device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    settings = {key: getattr(args, key) for key in ("full", "threads", "rounds", "quality")}
    settings["device"] = torch.cuda.get_device_name() if args.device.type == "cuda" else str(args.device)
    for name in args.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        for benchmark in module.benchmarks(args):
            if args.resume and is_done(benchmark, settings, args.output):
                print(f"{benchmark.name}: skipped, already measured", file=sys.stderr)
                continue
            notes = args.output / f"{benchmark.name}.readings.json"
            if not args.resume:
                notes.unlink(missing_ok=True)
            report = run(benchmark, 1 if benchmark.once else args.rounds, notes, settings)
            write(report, args.output)
            notes.unlink()
            print(table(report) + "\n", flush=True)


if __name__ == "__main__":
    main()
