"""What a region of interest gains, and what the map of uncertainty tells.

    python -m benchmarks.trust region --images FOLDER --weights-dir WEIGHTS [--bpp 0.03]
    python -m benchmarks.trust uncertainty --images FOLDER

Both use the model `small` unless `--model` names another one.

`region`: the mask is white in the middle of each image, half as high and half as wide. A row of the table
has the means over the images: bytes, quality, PSNR and LPIPS (AlexNet) inside and outside of the region. For
LPIPS, the other part of the decoded image is replaced by the original.

`uncertainty`: rank correlations (Spearman) between the mean absolute error of areas of 16 x 16 pixels and
the means there of the map, of the gradient of the decoded image, and of their ranks' sum; then those between
means of complete images.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import glc
from glc.codec.bitstream import unpack
from glc.data.images import list_images, read_rgb

AREA = 16


def region(codec: glc.BaseCodec, paths: list[Path], bpp: float, weights_dir: Path) -> None:
    """Print a table of files with and without a region of interest, at a quality and at a target."""
    from glc.losses.perceptual import LPIPS

    lpips = LPIPS("alex", weights_dir)

    def measure(original: np.ndarray, decoded: np.ndarray, part: np.ndarray) -> tuple[float, float]:
        error = np.square(original.astype(float) - decoded)[part].mean()
        mixed = np.where(part[..., None], decoded, original)
        x, x_hat = (torch.from_numpy(a).permute(2, 0, 1)[None].float() / 127.5 - 1 for a in (original, mixed))
        with torch.inference_mode():
            return 10 * np.log10(255**2 / error), float(lpips(x, x_hat))

    print("| file | bytes | quality | PSNR in | LPIPS in | PSNR out | LPIPS out |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, options in ((f"{bpp} bpp", {"target_bpp": bpp}), ("quality 50", {"quality": 50})):
        for masked in (False, True):
            rows = []
            for path in paths:
                original = np.array(read_rgb(path))
                height, width = original.shape[:2]
                mask = np.zeros((height, width), bool)
                mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
                data = codec.compress(original, **options, roi=mask if masked else None)
                quality = codec.quality_of(unpack(data)[0].rate_index)
                decoded = np.asarray(codec.decompress(data))
                inside, outside = (measure(original, decoded, part) for part in (mask, ~mask))
                rows.append((len(data), quality, *inside, *outside))
            size, quality, *rest = np.mean(rows, 0)
            values = f"{size:.0f} | {quality:.1f} | " + " | ".join(
                f"{value:.{2 if k % 2 == 0 else 4}f}" for k, value in enumerate(rest)
            )
            print(f"| {name}{', region' if masked else ''} | {values} |", flush=True)


def means(values: np.ndarray) -> np.ndarray:
    """Return the means of complete areas of a map, flattened."""
    rows, columns = (side // AREA for side in values.shape)
    found = values[: rows * AREA, : columns * AREA].reshape(rows, AREA, columns, AREA).mean((1, 3))
    return np.asarray(found.ravel())


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value."""
    return values.argsort().argsort().astype(float)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation; ties count as ordered."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def uncertainty(codec: glc.BaseCodec, paths: list[Path]) -> None:
    """Print how far the map, and a trivial one, rank the errors."""
    within, images = [], []
    for path in paths:
        original = np.asarray(read_rgb(path)).astype(float)
        found = codec.uncertainty(codec.compress(path))
        decoded = np.asarray(found.image).astype(float)
        down, right = np.gradient(decoded.mean(2))
        maps = [np.abs(original - decoded).mean(2), found.deviation, np.abs(down) + np.abs(right)]
        error, deviation, gradient = (means(values) for values in maps)
        sums = ranks(deviation) + ranks(gradient)
        within.append([correlation(error, other) for other in (deviation, gradient, sums)])
        images.append([values.mean() for values in maps])
    print("| areas of | deviation | gradient | sum of ranks |\n|---|--:|--:|--:|")
    print("| one image, mean | " + " | ".join(f"{value:.3f}" for value in np.mean(within, 0)) + " |")
    error, *others = np.array(images).T
    print(
        "| complete images | " + " | ".join(f"{correlation(error, other):.3f}" for other in others) + " | |"
    )


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("region", "uncertainty"))
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default="small")
    parser.add_argument("--weights-dir", type=Path)
    parser.add_argument("--bpp", type=float, default=0.03)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    codec, paths = glc.load(args.model, "cpu"), list_images(args.images)[: args.limit]
    if args.what == "region":
        region(codec, paths, args.bpp, args.weights_dir)
    else:
        uncertainty(codec, paths)


if __name__ == "__main__":
    main()
