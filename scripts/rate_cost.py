"""What exactness costs: bytes of real files against the float model's own estimate.

    python scripts/rate_cost.py --weights FILE --pictures FOLDER [--limit N] [--output FOLDER]

Sums over the pictures, per rate point:

    estimate   bits that the float model estimates (its networks in float32, its Gaussians as they are)
    exact      the same estimate with the probability networks in exact arithmetic
    tables     cost of the symbols under the integer tables
    payload    bytes in the files, without header and checksum

Prints each as a ratio to the first; `--output` gets them as `rate_cost.json`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from glc.codec.bitstream import OVERHEAD
from glc.codec.codec import Codec
from glc.codec.entropy.latent_coding import TransformPayload
from glc.codec.entropy.tables import PRECISION, Table
from glc.codec.images import pad
from glc.codec.load import load
from glc.data.images import list_images, read_rgb, stack_pictures

FIGURES = ("estimate", "exact", "tables", "payload")


def table_bits(values: np.ndarray, classes: np.ndarray, tables: tuple[Table, ...]) -> float:
    """Return the bits of symbols under their tables; of an escape, those of its position in the table."""
    bits = 0.0
    for k in np.unique(classes):
        table = tables[k]
        costs = PRECISION - np.log2(np.array(table.frequencies, np.float64))
        position = values[classes == k] - table.low
        position[(position < 0) | (position > table.escape)] = table.escape
        bits += float(costs[position].sum())
    return bits


def figures(codec: Codec, x: Tensor, rate: int) -> dict[str, float]:
    """Return bits of one picture x `[1, 3, H, W]` by each way of counting."""
    payload = codec._payload
    if not isinstance(payload, TransformPayload):
        raise SystemExit("the rate cost is that of a transform coder: this model has none")
    padded = pad(x, codec.model.stride)
    out = codec.model(padded, rate)
    quality = codec.quality_of(rate * 4096)
    data = codec.compress((x[0] + 1) / 2, quality)
    symbols = codec.symbols(data)
    y = codec.model.coder.analysis(codec.model.encoder(padded), rate).float()
    prior = payload._prior(symbols.z)
    exact = payload.context(y.double(), prior)
    classes = torch.bucketize(exact.scales, payload.thresholds, right=True)
    z_bits = float(out.bits_z)
    return {
        "estimate": float(out.bits),
        "exact": float(exact.bits.double().sum()) + z_bits,
        "tables": table_bits(symbols.y.numpy().ravel(), classes.numpy().ravel(), codec.weights.tables.y)
        + z_bits,
        "payload": 8.0 * (len(data) - OVERHEAD),
    }


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="weights file of a codec")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--limit", type=int, help="how many of them; all by default")
    parser.add_argument("--output", type=Path, help="folder for rate_cost.json")
    args = parser.parse_args()
    codec = load(args.weights, "cpu")
    sums = [dict.fromkeys(FIGURES, 0.0) for _ in range(codec.model.num_rates)]
    pictures = list_images(args.pictures)[: args.limit]
    with torch.inference_mode():
        for path in tqdm(pictures):
            x = stack_pictures([read_rgb(path)])
            for rate, total in enumerate(sums):
                for name, bits in figures(codec, x, rate).items():
                    total[name] += bits
    print(f"{len(pictures)} pictures\nrate  estimate, bytes" + "".join(f"{n:>10}" for n in FIGURES[1:]))
    for rate, total in enumerate(sums):
        ratios = "".join(f"{100 * (total[n] / total['estimate'] - 1):>+9.3f}%" for n in FIGURES[1:])
        print(f"{rate:<6}{total['estimate'] / 8:>15.0f}{ratios:>32}")
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "rate_cost.json").write_text(json.dumps(sums, indent=2) + "\n")


if __name__ == "__main__":
    main()
