"""Compress and decompress many pictures, and compare the decoded symbols with the encoder's own.

    python scripts/roundtrips.py --weights codec.safetensors --pictures FOLDER --count 500

The pictures are the folder's, then random crops of odd sizes, each at five qualities. Decoding must also be
a pure function: each file is decoded twice, the second time by another codec object. Exits with 1 when
anything differs.
"""

import argparse
import contextlib
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import glc
from glc.data.images import ImageError, list_images, read_rgb

QUALITIES = (0.0, 17.3, 50.0, 81.9, 100.0)
LONGEST_CROP = 301


@contextlib.contextmanager
def encoder_symbols(codec: glc.Codec) -> Iterator[list[glc.Symbols]]:
    """Collect what the codec's encoder writes, in a list that grows with each file, while in the context."""
    payload, seen = codec._payload, []
    encode = payload.encode

    def note(latent: torch.Tensor, rate: torch.Tensor) -> tuple[list[bytes], glc.Symbols]:
        payloads, symbols = encode(latent, rate)
        seen.append(symbols)
        return payloads, symbols

    payload.encode = note  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        payload.encode = encode  # type: ignore[method-assign]


def pictures(
    paths: list[Path], count: int, random_source: random.Random
) -> Iterator[tuple[str, Image.Image]]:
    """Yield `count` pictures with their names: each file whole, then crops with odd sides."""
    for path in paths[:count]:
        yield path.name, read_rgb(path)
    for _ in range(count - len(paths)):
        path = random_source.choice(paths)
        image = read_rgb(path)
        width, height = (random_source.randrange(1, min(LONGEST_CROP, side) + 1, 2) for side in image.size)
        left, top = (
            random_source.randint(0, image.width - width),
            random_source.randint(0, image.height - height),
        )
        name = f"{path.name} {width}x{height}+{left}+{top}"
        yield name, image.crop((left, top, left + width, top + height))


def check(codec: glc.Codec, other: glc.Codec, image: Image.Image, quality: float) -> tuple[int, list[str]]:
    """Return the bytes of one file and what is wrong with it."""
    with encoder_symbols(codec) as sent:
        data = codec.compress(image, quality)
    wrong = []
    try:
        decoded, again = codec.symbols(data), other.symbols(data)
        first, second = codec.decompress(data), other.decompress(data)
    except glc.BitstreamError as error:
        return len(data), [f"does not decode: {error}"]
    if decoded != sent[0]:
        wrong.append("symbols differ from the encoder's")
    if again != decoded:
        wrong.append("another codec object decodes other symbols")
    if first.size != image.size:
        wrong.append(f"size {first.size} instead of {image.size}")
    if first.tobytes() != second.tobytes():
        wrong.append("two decodings differ")
    return len(data), wrong


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the round trips and return the figures."""
    paths = list_images(arguments.pictures)
    if not paths:
        raise ValueError(f"{arguments.pictures}: holds no pictures")
    codec, other = (glc.load(arguments.weights, arguments.device) for _ in range(2))
    random_source = random.Random(arguments.seed)
    start = time.monotonic()
    mismatches: list[dict[str, Any]] = []
    done = total = pixels = 0
    for name, image in pictures(paths, math.ceil(arguments.count / len(QUALITIES)), random_source):
        for quality in QUALITIES[: arguments.count - done]:
            size, wrong = check(codec, other, image, quality)
            done, total, pixels = done + 1, total + size, pixels + image.width * image.height
            for reason in wrong:
                mismatches.append({"picture": name, "quality": quality, "reason": reason})
                print(f"{name} at quality {quality}: {reason}", file=sys.stderr)
    return {
        "round_trips": done,
        "mismatches": mismatches,
        "pictures": len(paths),
        "bytes": total,
        "pixels": pixels,
        "seconds": round(time.monotonic() - start, 1),
        "seed": arguments.seed,
        "device": str(codec.device),
        "torch": torch.__version__,
        "fingerprint": codec.weights.fingerprint,
    }


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="weights file, or a model's name")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--count", type=int, default=500, help="round trips (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for roundtrips.json")
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error("--count must be positive")
    try:
        figures = run(arguments)
    except (glc.WeightsError, ImageError, NotADirectoryError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "roundtrips.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(
        f"{figures['round_trips']} round trips of {figures['pixels'] / 1e6:.1f} megapixels in "
        f"{figures['seconds']} s: {len(figures['mismatches'])} mismatches"
    )
    return 1 if figures["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
