"""Measure `glc compress --shards` with two processes against one, one thread each, in alternating runs.

    python scripts/corpus_speed.py --output speed --repeats 3

Crops of the photographs that come inside installed packages. The seconds are those of whole commands,
start-up included, so give it enough pictures. Writes summary.json; exits with 1 when the ratio of medians is
below `--least`.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from killed_corpus import ROOT, compressing, write_shards


def main() -> None:
    """Parse the command line, run, print and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--shards", type=int, default=30)
    parser.add_argument("--side", type=int, default=224, help="of the crops, in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--least", type=float, default=1.8, help="ratio that is asked for")
    parser.add_argument("--weights", type=Path, help="of the codec  [default: tiny, with random weights]")
    parser.add_argument("--output", type=Path, required=True, help="folder; what is in it is replaced")
    given = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    given.output = given.output.resolve()
    shutil.rmtree(given.output, ignore_errors=True)
    damaged = write_shards(given.output / "in", given.shards, given.pictures, given.side, random.Random(0))
    weights = given.weights or given.output / "tiny.safetensors"
    if given.weights is None:
        script = [sys.executable, str(ROOT / "scripts" / "random_weights.py"), "tiny", str(weights)]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(given.repeats):
        for processes, taken in seconds.items():
            out = given.output / "out"
            shutil.rmtree(out, ignore_errors=True)
            began = time.monotonic()
            done = subprocess.run(
                compressing(given.output / "in", given.shards, weights, out, processes), check=False
            )
            taken.append(time.monotonic() - began)
            if done.returncode != (1 if damaged else 0):
                raise SystemExit(f"the command ended with {done.returncode}")
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[2])
    report = {"pictures": given.pictures, "side": given.side, "seconds": seconds, "ratio": round(ratio, 3)}
    (given.output / "summary.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    if ratio < given.least:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
