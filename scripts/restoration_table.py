"""Restore while compressing, or restore first? Table 3 of the paper, for any codec and encoder.

    python scripts/restoration_table.py --codec small --encoder small-denoise --images KODAK --output OUT

Each image is degraded, reproducibly, and compressed four ways: by the codec with the restoration encoder at
`--quality`; by the codec alone; by the codec after a restorer; and, as a bound, the clean image by the codec
alone. The last three get at least the bytes of the first and at most 3 % more. All are measured against the
clean original. Restorers for noise: non-local means and total variation (scikit-image), which are given
sigma, and BM3D if the package `bm3d` is installed. For holes: scikit-image's biharmonic inpainting, which is
given the mask. `--network FILE` adds a network saved by torch.export.save that maps images [1, 3, H, W] in
[0, 1] to restored images.

`--metrics full` adds DISTS, FID and KID if their weights are available (`--weights`). Writes table.md,
table.json and side_by_side.png. Exit code 1 unless the encoder beats the codec alone in PSNR, and in LPIPS if
its weights are available, with no more bytes. At high quality the codec alone may not reach that many bytes.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from PIL import Image

import glc
from glc.data.degradations import HOLE, Degradation, GaussianNoise, Mask
from glc.data.images import list_images, read_rgb, stack_images, to_image
from glc.errors import ImageError, TargetError

ROOT = Path(__file__).resolve().parent.parent
OURS = "restoration encoder"
ALONE = "codec alone"
CLEAN = "codec alone, clean image"
SLACK = 1.03
Restorer = Callable[[Image.Image], Image.Image]


def restorers(degradation: Degradation, network: Path | None = None) -> dict[str, Restorer]:
    """Return the restorers that run before compression, by name."""
    found: dict[str, Restorer] = {}
    if isinstance(degradation, GaussianNoise):
        sigma = sum(degradation.sigma) / 2 / 255
        found = {"non-local means": _nl_means(sigma), "total variation": _total_variation(sigma)}
        try:
            import bm3d
        except ImportError:
            pass
        else:
            found["BM3D"] = lambda image: _from_floats(bm3d.bm3d_rgb(_floats(image), sigma))
    elif isinstance(degradation, Mask):
        found = {"biharmonic inpainting": _biharmonic}
    if network is not None:
        found[network.stem] = _network(network)
    return found


def _nl_means(sigma: float) -> Restorer:
    from skimage.restoration import denoise_nl_means

    options: dict[str, Any] = {"patch_size": 5, "patch_distance": 6, "channel_axis": -1, "fast_mode": True}
    return lambda image: _from_floats(denoise_nl_means(_floats(image), h=0.6 * sigma, sigma=sigma, **options))


def _total_variation(sigma: float) -> Restorer:
    from skimage.restoration import denoise_tv_chambolle

    return lambda image: _from_floats(denoise_tv_chambolle(_floats(image), weight=sigma, channel_axis=-1))


def _biharmonic(image: Image.Image) -> Image.Image:
    from skimage.restoration import inpaint_biharmonic

    holes = (np.asarray(image) == round((HOLE + 1) * 127.5)).all(-1)
    return _from_floats(inpaint_biharmonic(_floats(image), holes, split_into_regions=True, channel_axis=-1))


def _network(path: Path) -> Restorer:
    network = torch.export.load(path).module()

    def restore(image: Image.Image) -> Image.Image:
        with torch.inference_mode():
            return to_image(network((stack_images([image]) + 1) / 2)[0] * 2 - 1)

    return restore


def _floats(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float64) / 255


def _from_floats(values: np.ndarray) -> Image.Image:
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def degrade(degradation: Degradation, image: Image.Image, number: int, seed: int) -> Image.Image:
    """Return a degraded image: a function of image, number and seed."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return to_image(degradation(stack_images([image]), generator)[0])


def compress_near(codec: glc.Codec, image: Image.Image, size: int) -> bytes:
    """Return a file of `size` to 1.03 x `size` bytes, or the nearest that the codec can make."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", glc.TargetWarning)
        try:
            return codec.compress(image, target_size=int(SLACK * size))
        except TargetError:
            return codec.compress(image, 0)


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], Image.Image]:
    """Compress all images in all ways; return a row per way, and the first image side by side."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = [f"degradation={arguments.degradation}", *arguments.overrides]
        cfg = compose("train", ["stage=restoration", f"metrics={arguments.metrics}", *words])
        if arguments.weights is not None:
            cfg.metrics.weights_dir = str(arguments.weights)
        degradation: Degradation = instantiate(cfg.degradation)
    plain = glc.load(arguments.codec, "cpu")
    restoring = glc.load(arguments.codec, "cpu", encoder=arguments.encoder)
    before: dict[str, Restorer] = {ALONE: lambda image: image}
    before |= {f"{name}, then codec": r for name, r in restorers(degradation, arguments.network).items()}
    quality = {name: instantiate(cfg.metrics) for name in (OURS, *before, CLEAN)}
    sizes: dict[str, list[int]] = {name: [] for name in quality}
    strips: list[Image.Image] = []
    paths = list_images(arguments.images)[: arguments.count]
    if not paths:
        raise ImageError(f"{arguments.images}: no images in this folder")
    pixels = 0
    for number, path in enumerate(paths):
        clean = read_rgb(path)
        degraded = degrade(degradation, clean, number, arguments.seed)
        pixels += clean.width * clean.height
        files = {OURS: restoring.compress(degraded, arguments.quality)}
        for name, restore in before.items():
            files[name] = compress_near(plain, restore(degraded), len(files[OURS]))
        files[CLEAN] = compress_near(plain, clean, len(files[OURS]))
        x = stack_images([clean])
        for name, data in files.items():
            image = plain.decompress(data)
            sizes[name].append(len(data))
            quality[name].update(x, stack_images([image]), torch.tensor([8.0 * len(data)]))
            if number == 0:
                strips.append(image)
        if number == 0:
            strips[:0] = [clean, degraded]
        print(f"{path.name}: {', '.join(str(len(data)) for data in files.values())} bytes", flush=True)
    rows = []
    for name, metrics in quality.items():
        values = {key: float(value) for key, value in metrics.compute().items()}
        rows.append({"way": name, **values, "bytes": sum(sizes[name]), "unavailable": metrics.unavailable})
        rows[-1]["bpp"] = 8 * sum(sizes[name]) / pixels
    return rows, _side_by_side(strips)


def _side_by_side(images: list[Image.Image], side: int = 256) -> Image.Image:
    """Return the centre crops of images in a row."""
    side = min(side, *images[0].size)
    left, top = ((length - side) // 2 for length in images[0].size)
    sheet = Image.new("RGB", (side * len(images), side))
    for i, image in enumerate(images):
        sheet.paste(image.crop((left, top, left + side, top + side)), (i * side, 0))
    return sheet


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    names = [key for key in rows[0] if key not in ("way", "bytes", "unavailable", "bpp")]
    lines = [f"| | bpp | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        digits = {"psnr": 2}
        values = [f"{row[name]:.{digits.get(name, 4)}f}" if name in row else "-" for name in names]
        lines.append(f"| {row['way']} | {row['bpp']:.4f} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def beats(ours: dict[str, Any], alone: dict[str, Any]) -> bool:
    """Whether a row beats another in PSNR, and in LPIPS if measured, with no more bytes."""
    better = ours["psnr"] > alone["psnr"] and ours["bytes"] <= alone["bytes"]
    return better and all(ours[name] < alone[name] for name in ours if name.startswith("lpips"))


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", default="small", help="weights file or known model (%(default)s)")
    parser.add_argument("--encoder", required=True, help="restoration encoder, file or known name")
    parser.add_argument("--images", type=Path, required=True, help="folder of clean images")
    parser.add_argument("--count", type=int, help="number of images to use; default: all")
    parser.add_argument(
        "--degradation", default="gaussian_noise", help="name in conf/degradation (%(default)s)"
    )
    parser.add_argument(
        "--quality", type=float, default=50.0, help="quality of the encoder's files (%(default)s)"
    )
    parser.add_argument("--metrics", default="default", choices=("default", "full", "full_64"))
    parser.add_argument("--weights", type=Path, help="folder with the metrics' weights")
    parser.add_argument("--network", type=Path, help="restorer saved by torch.export.save; must be trusted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("overrides", nargs="*", help="settings of the degradation: degradation.sigma=30")
    arguments = parser.parse_args()
    try:
        rows, sheet = measure(arguments)
    except (OSError, ValueError, HydraException) as error:
        # The module's own message is clearer than Hydra's wrapper.
        print(f"error: {error.__cause__ or error}", file=sys.stderr)
        return 2
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = to_markdown(rows)
    (arguments.output / "table.md").write_text(text)
    (arguments.output / "table.json").write_text(json.dumps(rows, indent=2) + "\n")
    sheet.save(arguments.output / "side_by_side.png")
    print(text, end="")
    for name, reason in rows[0]["unavailable"].items():
        print(f"{name} omitted: {reason}", file=sys.stderr)
    return 0 if beats(rows[0], next(row for row in rows if row["way"] == ALONE)) else 1


if __name__ == "__main__":
    sys.exit(main())
