"""One process of an evaluation: encode an image, decode its file, measure the result."""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from glc.codec.base import TargetWarning
from glc.codec.codec import choose_device
from glc.data.images import SampleImage, is_image_name, png_bytes, stack_images
from glc.evaluation.codecs.base import CodecUnavailable, ImageCodec, Setting
from glc.evaluation.summary import MEASUREMENTS, SETS
from glc.evaluation.testsets import ImageFile, ImageSet, Preprocess
from glc.io.atomic import write_bytes
from glc.jobs.engines import Report
from glc.jobs.tar_shards import split_name
from glc.jobs.worker import FileProcessor, Processed
from glc.metrics.quality import QualityMetrics

MakeCodec = Callable[[str], ImageCodec]
"""Makes the codec on a given device."""
MakeMetrics = Callable[[Sequence[str]], QualityMetrics]
"""Makes the metrics without those of the given names."""

_DIGITS = 9  # enough to represent any float32 exactly


@dataclass
class Evaluator:
    """Encodes and decodes images and measures the reconstructions."""

    codec: ImageCodec
    metrics: QualityMetrics
    device: str

    def encode(self, original: Image.Image, setting: Setting) -> tuple[bytes, dict[str, Any]]:
        """Return an image's file, and `encode_seconds` plus a `note` if the codec warned."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", TargetWarning)
            start = time.perf_counter()
            data = self.codec.encode(original, setting)
            seconds = time.perf_counter() - start
        note = {"note": str(caught[-1].message)} if caught else {}
        return data, {"encode_seconds": round(seconds, 4), **note}

    def decode(
        self, data: bytes, original: Image.Image, where: str | Path
    ) -> tuple[Image.Image, dict[str, Any]]:
        """Return the decoded image and its measurements: sizes, `bpp`, `scores`, `decode_seconds`.

        Raises:
            ValueError: its size differs from the original's, which was read from `where`.
        """
        start = time.perf_counter()
        decoded = self.codec.decode(data)
        seconds = time.perf_counter() - start
        if decoded.size != original.size:
            raise ValueError(
                f"{where}: decoded to {decoded.width}x{decoded.height} pixels, "
                f"the original has {original.width}x{original.height}"
            )
        return decoded, {
            "width": original.width,
            "height": original.height,
            "bytes": len(data),
            "bpp": 8 * len(data) / (original.width * original.height),
            "scores": self._score(original, decoded),
            "decode_seconds": round(seconds, 4),
        }

    def _score(self, original: Image.Image, decoded: Image.Image) -> dict[str, float]:
        x, x_hat = (stack_images([image]).to(self.device) for image in (original, decoded))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about skipped images; the summary has their number
            values = self.metrics.measure(x, x_hat)
        return {name: rounded(value) for name, value in values.items()}


@dataclass(frozen=True)
class EvaluatorSpec:
    """Makes the evaluator of a process; picklable."""

    make_codec: MakeCodec
    make_metrics: MakeMetrics
    omitted: Sequence[str]
    """Names of the metrics that are not made: set metrics and unavailable ones."""
    devices: Sequence[str]
    threads: int
    seed: int

    def __call__(self, rank: int) -> Evaluator:
        """Make codec and metrics on the device of a rank (round robin)."""
        device = str(choose_device(self.devices[rank % len(self.devices)]))
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)
        return Evaluator(self.make_codec(device), self.make_metrics(self.omitted).to(device), device)


Item = tuple[ImageFile, Setting]


@dataclass(frozen=True)
class FolderWorker:
    """Measures images of a folder, one setting per item."""

    out: Path
    images: ImageSet
    evaluator: Evaluator

    def run_one(self, item: Item, report: Report) -> dict[str, Any]:
        """Compress an image to a file, decompress the file, score the result.

        Returns:
            The journal entry: `image`, `label` and either the measurements or `failed`, the reason.
        """
        image, setting = item
        entry: dict[str, Any] = {"image": image.name, "label": setting.label}
        try:
            return entry | self._measure(image, setting)
        except CodecUnavailable:
            raise
        # A failed image is reported by name and does not affect others; decoders raise many types.
        except Exception as error:
            return entry | {"failed": _one_line(error)}

    def _measure(self, image: ImageFile, setting: Setting) -> dict[str, Any]:
        original, done = self.images.preprocess.read(image.path, str(image.path))
        data, encoded = self.evaluator.encode(original, setting)
        path = file_path(self.out, setting, image, self.evaluator.codec.suffix)
        write_bytes(path, data)
        data = path.read_bytes()  # decode the bytes that are on the disk
        decoded, measured = self.evaluator.decode(data, original, image.path)
        write_bytes(reconstruction_path(self.out, setting, image), png_bytes(decoded, compress_level=3))
        return {**measured, **encoded, **({"treatment": done} if done else {})}


@dataclass
class ImageProcessor(FileProcessor):
    """Measures the image of a sample at all settings."""

    evaluator: Evaluator
    preprocess: Preprocess
    keep_files: bool
    image: SampleImage = field(default_factory=SampleImage)
    sets: Mapping[str, QualityMetrics] = field(default_factory=dict)
    """Metrics of complete sets, by the setting's label; empty if there are none."""

    @property
    def sums(self) -> bool:
        """Whether there are metrics of complete sets."""
        return bool(self.sets)

    def start(self) -> None:
        """Begin a shard."""
        for metrics in self.sets.values():
            metrics.reset()

    def finish(self) -> Sequence[tuple[str, bytes]]:
        """Return what the set metrics have accumulated over the shard."""
        states = {
            f"{label}/{name}": value.cpu()
            for label, metrics in self.sets.items()
            for name, value in metrics.accumulated().items()
        }
        return [(SETS, save(states))] if states else []

    def accepts(self, name: str) -> bool:
        """Whether the name is that of an image."""
        return is_image_name(name)

    def choose(self, names: Sequence[str]) -> str | None:
        """Return the name of the image of a sample; None if it has none.

        Raises:
            ValueError: it does not have the file that `testset.member` names.
        """
        suffixes = [split_name(name)[1] for name in names]
        chosen = self.image.choose(suffixes, names[0] if names else "")
        if chosen is None and self.image.member is not None:
            raise ValueError(f"no file {self.image.member}, which testset.member names ({', '.join(names)})")
        return None if chosen is None else names[suffixes.index(chosen)]

    def process_file(self, data: bytes, name: str) -> Processed:
        """Return the measurements of an image; with `keep_files` also its files and reconstructions.

        An image that fails at one setting counts as failed, so that all means are over the same images.
        """
        original, done = self.preprocess.read(data, name)
        codec = self.evaluator.codec
        measurements: dict[str, Any] = {}
        kept: list[tuple[str, bytes]] = []
        pairs: dict[str, Image.Image] = {}
        for setting in codec.settings:
            try:
                coded, encoded = self.evaluator.encode(original, setting)
                decoded, measured = self.evaluator.decode(coded, original, name)
            except Exception as error:  # decoders raise many types
                if "CUDA error" in str(error):
                    raise
                raise ValueError(f"{setting.label}: {_one_line(error)}") from error
            # Times are omitted: they are unreliable with many processes and not reproducible.
            entry = {key: value for key, value in {**measured, **encoded}.items() if "seconds" not in key}
            measurements[setting.label] = entry | ({"treatment": done} if done else {})
            pairs[setting.label] = decoded
            if self.keep_files:
                kept.append((f"{setting.label}{codec.suffix}", coded))
                kept.append((f"{setting.label}.png", png_bytes(decoded, compress_level=3)))
        for label, metrics in self.sets.items():  # only now: the image did not fail at any setting
            metrics.update(*(stack_images([x]).to(self.evaluator.device) for x in (original, pairs[label])))
        text = json.dumps(measurements).encode() + b"\n"
        pixels = sum(entry["width"] * entry["height"] for entry in measurements.values())
        size = sum(entry["bytes"] for entry in measurements.values())
        return Processed([(MEASUREMENTS, text), *kept], pixels, size)


def file_path(folder: Path, setting: Setting, image: ImageFile, suffix: str) -> Path:
    """Return the path of an image's compressed file."""
    return folder / "files" / setting.label / f"{image.name}{suffix}"


def reconstruction_path(folder: Path, setting: Setting, image: ImageFile) -> Path:
    """Return the path of an image's reconstruction."""
    return folder / "reconstructions" / setting.label / f"{image.name}.png"


def choose_devices(device: str | Sequence[str], several: bool) -> list[str]:
    """Return the devices to distribute processes over.

    Args:
        device: `auto`, `cpu`, `cuda`, or several of them.
        several: whether there are several processes, which then use all GPUs.

    Raises:
        ValueError: a device does not exist.
    """
    names = [device] if isinstance(device, str) else list(device)
    if names == ["auto"] and torch.cuda.is_available():
        names = ["cuda"]
    if names == ["cuda"] and several and torch.cuda.is_available():
        names = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    return [str(choose_device(name)) for name in names]


def rounded(value: torch.Tensor) -> float:
    """Round a metric's value to 9 significant digits."""
    return float(f"{value.item():.{_DIGITS}g}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
