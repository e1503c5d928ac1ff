"""Share of each stage in the time of compress and decompress, entropy coding above all.

    python -m benchmarks profile --weights FILE [--image FILE] [--rounds N] [--device D]

Times the stages of a codec on one image within the same calls, after a warm-up. `entropy coding` is
everything between the networks' tensors and bytes: selecting the elements of a pass, copies to numpy, sorting
by scale index, constriction, and scattering the symbols. Details are percent of the total.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import glc
from benchmarks.codec import open_image, weights_of
from benchmarks.readings import Benchmark, Clock, Reading
from glc.evaluation.complexity import watched


def benchmarks(args: argparse.Namespace) -> Iterator[Benchmark]:
    """Return the profile, with compress and decompress as sides."""
    weights = weights_of(args)
    codec = glc.load(weights, args.device)
    image = open_image(args.image)
    data = codec.compress(image, args.quality)
    codec.decompress(data)
    yield Benchmark(
        "profile",
        "image",
        f"{weights.name}, {image.width} x {image.height}, {len(data)} bytes. Details: percent of the total.",
        {
            "compress": partial(measure, codec, lambda: codec.compress(image, args.quality)),
            "decompress": partial(measure, codec, lambda: codec.decompress(data)),
        },
    )


def measure(codec: glc.Codec, call: Callable[[], Any]) -> Reading:
    """Time the stages of one call."""
    with watched(codec) as stopwatch:
        clock = Clock(codec.device)
        call()
        reading = clock.reading(1)
    parts = {**stopwatch.seconds, "other": reading.seconds - sum(stopwatch.seconds.values())}
    reading.details = {name: 100 * seconds / reading.seconds for name, seconds in parts.items()}
    return reading
