"""Symbols per second of entropy coding: y under Gaussian tables by scale index, z as fixed-length indices.

The baseline for y is the library's own model, one Gaussian per symbol. Both code the same symbols; `bits per
symbol` is the size of the payload.
"""

import argparse
from collections.abc import Iterator

import constriction
import numpy as np
import torch

from benchmarks.readings import Benchmark, Clock, Reading
from glc.codec.entropy.ans import AnsDecoder, AnsEncoder, IntegerModel, UniformModel
from glc.codec.entropy.tables import SCALE_MAX, SCALE_MIN, SCALES, gaussian_tables

CPU = torch.device("cpu")


def benchmarks(args: argparse.Namespace) -> Iterator[Benchmark]:
    """Return the benchmarks of y and z."""
    count = 4_000_000 if args.full else 400_000
    tables = gaussian_tables().y
    scales = np.geomspace(SCALE_MIN, SCALE_MAX, SCALES)
    generator = np.random.default_rng(0)
    # As in an image: most symbols have small scales.
    classes = np.minimum(generator.geometric(0.08, count) - 1, len(tables) - 1)
    sigma = scales[classes]
    y = np.rint(generator.normal(0, sigma)).astype(np.int32)
    model = IntegerModel(tables)

    def ours() -> Reading:
        clock = Clock(CPU)
        encoder = AnsEncoder()
        model.push(encoder, y, classes)
        data = encoder.payload()
        middle = clock.reading(1).seconds
        back = model.pop(AnsDecoder(data), classes)
        return checked(back, y, clock, middle, len(data))

    def library() -> Reading:
        family = constriction.stream.model.QuantizedGaussian(-4096, 4096)
        means = np.zeros(count)
        clock = Clock(CPU)
        stack = constriction.stream.stack.AnsCoder()
        stack.encode_reverse(y, family, means, sigma)
        data = stack.get_compressed()
        middle = clock.reading(1).seconds
        back = constriction.stream.stack.AnsCoder(data).decode(family, means, sigma)
        return checked(back, y, clock, middle, 4 * len(data))

    yield Benchmark(
        "entropy",
        "symbol",
        f"{count:,} symbols of y, coded and decoded; details: symbols per second of each direction, bits per "
        "symbol. Baseline: a Gaussian per symbol.",
        {"library's Gaussians": library, "our tables": ours},
    )
    z = generator.integers(0, 16384, count).astype(np.int32)
    numbers = UniformModel(16384)

    def fixed_length() -> Reading:
        clock = Clock(CPU)
        encoder = AnsEncoder()
        numbers.push(encoder, z)
        data = encoder.payload()
        middle = clock.reading(1).seconds
        return checked(numbers.pop(AnsDecoder(data), count), z, clock, middle, len(data))

    def bits() -> Reading:
        clock = Clock(CPU)
        encoder = AnsEncoder()
        encoder.push_bits(z, 14)
        data = encoder.payload()
        middle = clock.reading(1).seconds
        return checked(AnsDecoder(data).pop_bits(count, 14), z, clock, middle, len(data))

    yield Benchmark(
        "entropy_z",
        "symbol",
        f"{count:,} indices of 14 bits. Baseline: as plain bits, in two slices.",
        {"bits": bits, "fixed length": fixed_length},
    )


def checked(back: np.ndarray, symbols: np.ndarray, clock: Clock, middle: float, size: int) -> Reading:
    """Check the decoded symbols and return the reading."""
    reading = clock.reading(len(symbols))
    if not np.array_equal(back, symbols):
        raise SystemExit("entropy: decoded symbols differ from the encoded ones")
    reading.details = {
        "encode, symbols/s": len(symbols) / middle,
        "decode, symbols/s": len(symbols) / (reading.seconds - middle),
        "bits per symbol": 8 * size / len(symbols),
    }
    return reading
