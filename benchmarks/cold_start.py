r"""Time of commands from a cold start, against another version of glc.

    python -m benchmarks.cold_start CHECKOUT --image photo.png [--rounds 7]

Runs `glc compress`, `glc decompress`, `glc info` and `glc models` of this checkout and of CHECKOUT in turn,
each in a new process with the same Python, and prints the medians of wall and processor seconds with their
ratios. Both sides decompress the file that CHECKOUT compressed.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(checkout: Path, words: list[str]) -> tuple[float, float]:
    """Run a command of a checkout; return its wall and processor seconds."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "glc", *words], cwd=checkout, env=environment, capture_output=True, text=True
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{checkout}: glc {' '.join(words)}: {done.stderr.strip()}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cold_start", description=__doc__.splitlines()[0]
    )
    parser.add_argument("checkout", type=Path, help="the other version")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    sides = {"here": ROOT, "other": args.checkout.resolve()}
    image = str(args.image.resolve())
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "image.glc"))
        run(sides["other"], ["compress", image, "-o", file])
        outputs = (
            ["-o", str(Path(folder, "out.glc")), "--force"],
            ["-o", str(Path(folder, "out.png")), "--force"],
        )
        commands = {
            "compress": ["compress", image, *outputs[0]],
            "decompress": ["decompress", file, *outputs[1]],
            "info": ["info", file],
            "models": ["models"],
        }
        for words in commands.values():  # fills the caches of files and compiled kernels
            for checkout in sides.values():
                run(checkout, words)
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(args.rounds):
            for name, words in commands.items():
                for side, checkout in sides.items():
                    found.setdefault((name, side), []).append(run(checkout, words))
    print("| command | wall, s | other | ratio | processor, s | other | ratio |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in commands:
        cells = []
        for k in (0, 1):
            here, other = (statistics.median(one[k] for one in found[name, side]) for side in sides)
            cells += [f"{here:.2f}", f"{other:.2f}", f"{here / other:.2f}"]
        print(f"| `glc {name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
