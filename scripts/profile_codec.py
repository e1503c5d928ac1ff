r"""Where the time of compress and decompress goes, above all the share of entropy coding.

    python scripts/profile_codec.py --weights FILE [--picture FILE] [--repeats N] [--device D] \
        [--output FOLDER]

Times the parts of a codec on one picture (random pixels of 768 x 512 without `--picture`) within the same
calls. `entropy coding` is everything between the networks' tensors and bytes: choosing the elements of a
step, copies to numpy, sorting by class, constriction, and putting symbols back. Medians over the repeats; one
call before them is not counted. `--output` gets them as `profile_codec.json`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from glc.codec.load import load
from glc.evaluation.complexity import watched


def main() -> None:
    """Run the profile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="weights file of a codec")
    parser.add_argument("--picture", type=Path, help="default: random pixels of 768 x 512")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for profile_codec.json")
    args = parser.parse_args()
    noise = np.random.default_rng(0).integers(0, 256, (512, 768, 3), np.uint8)
    image = Image.open(args.picture) if args.picture else Image.fromarray(noise)
    codec = load(args.weights, args.device)
    data = codec.compress(image, args.quality)
    codec.decompress(data)
    report: dict[str, dict[str, float]] = {}
    with watched(codec) as stopwatch:
        for name, call in {
            "compress": lambda: codec.compress(image, args.quality),
            "decompress": lambda: codec.decompress(data),
        }.items():
            runs = []
            for _ in range(args.repeats):
                stopwatch.seconds.clear()
                start = time.perf_counter()
                call()
                total = time.perf_counter() - start
                runs.append(
                    {**stopwatch.seconds, "other": total - sum(stopwatch.seconds.values()), "total": total}
                )
            report[name] = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
    print(
        f"{image.width} x {image.height}, {len(data)} bytes, {codec.device}, "
        f"{torch.get_num_threads()} threads"
    )
    for name, parts in report.items():
        print(f"\n{name:<20}{'seconds':>10}{'share':>9}")
        for part, seconds in sorted(parts.items(), key=lambda item: item[1]):
            print(f"  {part:<18}{seconds:>10.4f}{100 * seconds / parts['total']:>8.2f}%")
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "profile_codec.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
