"""Add a trained codec to the package, with a record of its training and golden files.

    python scripts/ship_model.py small --runs runs/small --photos PHOTOS

RUNS has the folders vqvae, transform and joint of one model. A model that is trained further from a stage
on needs that stage and the following ones; the others keep their record. The script writes the weights file
of stage III in half precision to src/glc/pretrained (or copies `--weights`, an export of the same
checkpoint); the configuration and validation log of each stage, the training weights (training.safetensors)
and record.json with checksums to docs/models/NAME; and golden files of two photographs with their integers
to tests/expected/NAME. `tests/codec/test_shipped.py` checks them. PHOTOS are training images, on which the
frequencies of the hyper-latent's codewords are counted.
"""

import argparse
import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import glc
from glc.codec.weights.export import export, export_training_weights
from glc.data.images import list_images, read_rgb
from glc.data.sources import sample_paths
from glc.errors import WeightsError
from glc.io.atomic import replacing
from glc.io.checkpoint import open_checkpoint

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("vqvae", "transform", "joint")
GOLDEN = {"chelsea": (0, 0, 451, 300), "flower": (0, 0, 256, 192)}
"""Crops of photographs in installed packages: a complete image with odd sides, and a corner."""
QUALITIES = (0.0, 45.5, 100.0)


def digest(symbols: glc.Symbols) -> str:
    """Return the SHA-256 of the integers, as little-endian int32, and of their shapes."""
    found = hashlib.sha256()
    for values in (symbols.z, symbols.y):
        found.update(repr(tuple(values.shape)).encode())
        found.update(np.asarray(values).astype("<i4").tobytes())
    return found.hexdigest()


def validation_rows(run: Path) -> Iterator[dict[str, str]]:
    """Yield the validation rows of a run in the order of steps, over all its CSV files."""
    rows: dict[int, dict[str, str]] = {}
    files = sorted(
        run.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])
    )
    if not files:
        raise ValueError(
            f"{run}: has no csv/version_*/metrics.csv; train with logger=csv or the default loggers"
        )
    for file in files:
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                kept = {key: value for key, value in row.items() if key.startswith("val/") and value}
                if kept:
                    rows[int(row["step"])] = kept
    for step in sorted(rows):
        yield {"step": str(step), **rows[step]}


def without_folders(value: Any) -> Any:
    """Return a configuration with absolute paths cut to their last two names."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and value.startswith("/"):
        return "/".join(Path(value).parts[-2:])
    return value


def record(runs: Path, folder: Path) -> dict[str, Any]:
    """Write each stage's configuration and validation log; return steps, checksum and last validation.

    The record of a stage without a folder in `runs` is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier = folder / "record.json"
    stages = json.loads(earlier.read_text())["stages"] if earlier.is_file() else {}
    for stage in STAGES:
        if stage in stages and not (runs / stage).is_dir():
            continue
        checkpoint = runs / stage / "checkpoints" / "last.ckpt"
        opened = open_checkpoint(checkpoint)
        with replacing(folder / f"{stage}.yaml") as partial:
            partial.write_text(yaml.safe_dump(without_folders(opened.settings), sort_keys=False))
        rows = list(validation_rows(runs / stage))
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with replacing(folder / f"{stage}.csv") as partial, partial.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        stages[stage] = {
            "steps": opened.step,
            "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
            "validation": rows[-1],
        }
    return stages


def golden(codec: glc.Codec, folder: Path) -> None:
    """Write golden files and the checksums of their integers."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    photographs = {path.stem: path for split in ("train", "test") for path in sample_paths(split)}
    note: dict[str, Any] = {"fingerprint": codec.weights.fingerprint, "files": {}}
    for name, box in GOLDEN.items():
        image = read_rgb(photographs[name]).crop(box)
        for quality in QUALITIES:
            data = codec.compress(image, quality)
            file = f"{name}_q{quality:g}.glc"
            (folder / file).write_bytes(data)
            note["files"][file] = {"box": list(box), "symbols": digest(codec.symbols(data))}
    (folder / "golden.json").write_text(json.dumps(note, indent=1) + "\n")


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="name of the model in the package")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the stages")
    parser.add_argument("--weights", type=Path, help="an export of the checkpoint of stage III, to copy")
    parser.add_argument("--photos", type=Path, help="images to count the hyper-latent's codewords on")
    parser.add_argument("--count", type=int, default=64, help="number of these images (%(default)s)")
    arguments = parser.parse_args()
    weights = ROOT / "src" / "glc" / "pretrained" / f"{arguments.name}.safetensors"
    try:
        photos = [] if arguments.photos is None else list_images(arguments.photos)[: arguments.count]
        stages = record(arguments.runs, ROOT / "docs" / "models" / arguments.name)
        checkpoint = arguments.runs / "joint" / "checkpoints" / "last.ckpt"
        if arguments.weights is None:
            export(checkpoint, weights, half=True, photos=photos)
        else:
            with replacing(weights) as partial:
                shutil.copyfile(arguments.weights, partial)
        training = ROOT / "docs" / "models" / arguments.name / "training.safetensors"
        export_training_weights(checkpoint, training, half=True)
        codec = glc.load(weights, device="cpu")
        golden(codec, ROOT / "tests" / "expected" / arguments.name)
    except (OSError, ValueError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    made = {
        "fingerprint": codec.weights.fingerprint,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "bytes": weights.stat().st_size,
        "training_sha256": hashlib.sha256(training.read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in codec.model.parameters()),
        "torch": torch.__version__,
        "images_counted": len(photos),
        "stages": stages,
    }
    target = ROOT / "docs" / "models" / arguments.name / "record.json"
    with replacing(target) as partial:
        partial.write_text(json.dumps(made, indent=1) + "\n")
    print(f"{weights.relative_to(ROOT)}: {made['bytes']:,} bytes, {made['parameters']:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
