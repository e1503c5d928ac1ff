"""Rate cost of integer networks and tables: bytes of files against the float model's estimate.

    python -m benchmarks rate_cost --weights FILE --images FOLDER [--limit N]

Sums over the images, as details of each rate point:

    estimate   bytes that the float model estimates (networks in float32, continuous Gaussians)
    exact      estimate with integer networks, relative to `estimate`
    tables     cost of the symbols under the integer tables, relative to `estimate`
    payload    bytes in the files without header and checksum, relative to `estimate`
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.readings import Benchmark, Clock, Reading
from glc.codec.bitstream import OVERHEAD
from glc.codec.codec import Codec, load
from glc.codec.entropy.latent_coding import TransformLatentCodec
from glc.codec.entropy.tables import PRECISION, Table
from glc.data.images import list_images, pad, read_rgb, stack_images


def benchmarks(args: argparse.Namespace) -> Iterator[Benchmark]:
    """Return the comparison, with one side per rate point."""
    if args.weights is None or args.images is None:
        raise SystemExit("rate_cost: give --weights FILE and --images FOLDER")
    codec = load(args.weights, "cpu")
    if not isinstance(codec.latent_codec, TransformLatentCodec):
        raise SystemExit(f"{args.weights}: rate_cost needs a model with a transform coder")
    paths = list_images(args.images)[: args.limit]
    if not paths:
        raise SystemExit(f"{args.images}: no images in this folder")
    yield Benchmark(
        "rate_cost",
        "image",
        f"{args.weights.name}, {len(paths)} images. Details: bytes that the float model estimates, and "
        "the excess over them in percent.",
        {
            f"rate {rate_index}": partial(measure, codec, paths, rate_index)
            for rate_index in range(codec.model.num_rates)
        },
        once=True,
    )


def measure(codec: Codec, paths: list[Path], rate_index: int) -> Reading:
    """Count the bits of all images at a rate point."""
    clock = Clock(torch.device("cpu"))
    total = np.zeros(4)
    with torch.inference_mode():
        for path in paths:
            total += count_bits(codec, stack_images([read_rgb(path)]), rate_index)
    more = 100 * (total[1:] / total[0] - 1)
    details = dict(zip(("exact, %", "tables, %", "payload, %"), map(float, more), strict=True))
    return clock.reading(len(paths), **{"estimate, bytes": float(total[0]) / 8, **details})


def count_bits(codec: Codec, x: Tensor, rate_index: int) -> np.ndarray:
    """Return the bits of one image x `[1, 3, H, W]`: estimate, exact, tables, payload."""
    latent_codec = codec.latent_codec
    assert isinstance(latent_codec, TransformLatentCodec)
    padded = pad(x, codec.model.stride)
    out = codec.model(padded, rate_index)
    data = codec.compress((x[0] + 1) / 2, codec.quality_of(rate_index * 4096))
    symbols = codec.symbols(data)
    y = codec.model.coder.analysis(codec.model.encoder(padded), rate_index).float()
    exact = latent_codec.context(y.double(), latent_codec.prior(symbols.z))
    indexes = torch.bucketize(exact.scales, latent_codec.thresholds, right=True)
    z_bits = float(out.bits_z)
    tables = table_bits(symbols.y.numpy().ravel(), indexes.numpy().ravel(), codec.weights.tables.y)
    return np.array(
        [
            float(out.bits),
            float(exact.bits.double().sum()) + z_bits,
            tables + z_bits,
            8.0 * (len(data) - OVERHEAD),
        ]
    )


def table_bits(values: np.ndarray, classes: np.ndarray, tables: tuple[Table, ...]) -> float:
    """Return the bits of symbols under their tables; an escape costs the bits of the table's escape entry."""
    bits = 0.0
    for k in np.unique(classes):
        table = tables[k]
        costs = PRECISION - np.log2(np.array(table.frequencies, np.float64))
        position = values[classes == k] - table.low
        position[(position < 0) | (position > table.escape)] = table.escape
        bits += float(costs[position].sum())
    return bits
