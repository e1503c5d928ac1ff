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
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from glc.codec.codec import Codec, load
from glc.codec.payload import TransformPayload


class Stopwatch:
    """Sums the wall time of wrapped functions; time inside an inner one does not count for the outer."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.device = device
        self._inner = [0.0]

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed under the name of a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._wait()
            start = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                self._wait()
                whole = time.perf_counter() - start
                self.seconds[part] += whole - self._inner.pop()
                self._inner[-1] += whole

        return timed

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def watch(codec: Codec, stopwatch: Stopwatch) -> None:
    """Time the parts of a codec from now on."""
    payload, model = codec._payload, codec.model
    if not isinstance(payload, TransformPayload):
        raise SystemExit("this model has no transform coder")
    parts = {
        "E": model.encoder,
        "D": model.decoder,
        "g_a": model.coder.analysis,
        "h_a, C_h": model.coder.hyper,
        "g_s": model.coder.synthesis,
        "exact networks": payload.synthesis,
    }
    for part, module in parts.items():
        module.forward = stopwatch.wrap(part, module.forward)
    for name in ("split_prior", "predict"):
        setattr(payload.context, name, stopwatch.wrap("exact networks", getattr(payload.context, name)))
    # What is left of reading and writing a payload, beside the networks inside, is entropy coding.
    for name in ("encode", "decode"):
        setattr(payload, name, stopwatch.wrap("entropy coding", getattr(payload, name)))


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
    stopwatch = Stopwatch(codec.device)
    watch(codec, stopwatch)
    report: dict[str, dict[str, float]] = {}
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
