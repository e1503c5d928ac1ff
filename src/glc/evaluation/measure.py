"""One picture at one setting: to bytes, back from these bytes, and measured."""

import io
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from glc.codec.codec import TargetWarning
from glc.data.images import stack_pictures
from glc.evaluation.codecs.base import CodecUnavailable, ImageCodec, Setting
from glc.evaluation.records import write_bytes
from glc.evaluation.testsets import Picture, PictureSet
from glc.metrics.quality import QualityMetrics

MakeCodec = Callable[[str], ImageCodec]
"""Makes the codec on a device."""
MakeMetrics = Callable[[Sequence[str]], QualityMetrics]
"""Makes the metrics but those of the given names."""

_DIGITS = 9  # all that float32 holds, and no more


def file_path(folder: Path, setting: Setting, picture: Picture, suffix: str) -> Path:
    """Return where a picture's compressed file lies."""
    return folder / "files" / setting.label / f"{picture.name}{suffix}"


def reconstruction_path(folder: Path, setting: Setting, picture: Picture) -> Path:
    """Return where the picture that was decoded from it lies."""
    return folder / "reconstructions" / setting.label / f"{picture.name}.png"


@dataclass
class Meter:
    """Puts pictures through a codec and measures what comes back.

    Args:
        codec: under test.
        metrics: scores of single pictures.
        device: where the scores are computed.
    """

    codec: ImageCodec
    metrics: QualityMetrics
    device: str

    def encode(self, original: Image.Image, setting: Setting) -> tuple[bytes, dict[str, Any]]:
        """Return a picture's file, and `encode_seconds` with a `note` where there is one."""
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
        """Return what a file decodes to and how good that is: sizes, `bpp`, `scores`, `decode_seconds`.

        Raises:
            ValueError: it is of another size than the original, which was read from `where`.
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
        x, x_hat = (stack_pictures([image]).to(self.device) for image in (original, decoded))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pictures left out; the summary says how many
            values = self.metrics.measure(x, x_hat)
        return {name: float(f"{value.item():.{_DIGITS}g}") for name, value in values.items()}


@dataclass
class Bench:
    """What measures pictures of a folder in one process.

    Args:
        folder: of the run.
        pictures: the set.
        meter: codec and metrics.
    """

    folder: Path
    pictures: PictureSet
    meter: Meter

    def measure(self, picture: Picture, setting: Setting) -> dict[str, Any]:
        """Compress a picture into a file, decompress the file, score the result.

        Returns:
            What the journal keeps: `picture`, `label` and either the row's values or `failed`, the reason.
        """
        entry: dict[str, Any] = {"picture": picture.name, "label": setting.label}
        try:
            return entry | self._measure(picture, setting)
        except CodecUnavailable:
            raise
        # One picture's misfortune is reported with its name and leaves the others alone; decoders of all
        # kinds raise nearly anything.
        except Exception as error:
            return entry | {"failed": reason_of(error)}

    def _measure(self, picture: Picture, setting: Setting) -> dict[str, Any]:
        original = self.pictures.read(picture)
        data, encoded = self.meter.encode(original, setting)
        path = file_path(self.folder, setting, picture, self.meter.codec.suffix)
        write_bytes(path, data, sync=False)
        data = path.read_bytes()  # what is decoded is what lies in the file
        decoded, measured = self.meter.decode(data, original, picture.path)
        path = reconstruction_path(self.folder, setting, picture)
        write_bytes(path, png_bytes(decoded), sync=False)
        return {**measured, **encoded}


def reason_of(error: Exception) -> str:
    """Return what went wrong in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def measure_set(
    folder: Path,
    pictures: PictureSet,
    measured: Sequence[Picture],
    setting: Setting,
    metrics: QualityMetrics,
    device: str,
    seed: int,
) -> dict[str, float]:
    """Compute the metrics of a whole set at one setting, from the reconstructions in their files.

    Always by one process and in the order of the names, so that the numbers do not depend on how the
    pictures were shared out.

    Args:
        folder: of the run.
        pictures: the set.
        measured: the pictures that have reconstructions.
        setting: of the codec.
        metrics: those of whole sets only.
        device: where they are computed.
        seed: of what they draw.

    Returns:
        Name to value; those without a value are in `metrics.unavailable`.
    """
    torch.manual_seed(seed)
    metrics.reset()
    for picture in measured:
        with Image.open(reconstruction_path(folder, setting, picture), formats=["PNG"]) as opened:
            decoded = opened.convert("RGB")
        x, x_hat = (stack_pictures([image]).to(device) for image in (pictures.read(picture), decoded))
        metrics.update(x, x_hat)
    return {name: float(f"{value.item():.{_DIGITS}g}") for name, value in metrics.compute().items()}


def png_bytes(image: Image.Image) -> bytes:
    """Return a decoded picture's file: plain pixels, without what a decoder attached, such as a profile."""
    stream = io.BytesIO()
    plain = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
    plain.save(stream, "PNG", compress_level=3)
    return stream.getvalue()


_bench: Bench | None = None  # of this process, where it is a worker


def prepare_process(threads: int, seed: int) -> None:
    """Set what a process that measures has in common with all others."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class Assignment:
    """What a worker process needs to make its bench; all of it can be sent to another process."""

    folder: Path
    pictures: PictureSet
    make_codec: MakeCodec
    make_metrics: MakeMetrics
    left_out: Sequence[str]
    """Names of the metrics that workers do not make: `measure_set` does, or nobody can."""
    threads: int
    seed: int

    def bench(self, device: str) -> Bench:
        """Return a bench on a device."""
        prepare_process(self.threads, self.seed)
        metrics = self.make_metrics(self.left_out).to(device)
        return Bench(self.folder, self.pictures, Meter(self.make_codec(device), metrics, device))


def start_worker(assignment: Assignment, devices: Any) -> None:
    """Make this process's bench, on the next device of a queue."""
    global _bench
    _bench = assignment.bench(devices.get())


def work(task: tuple[Picture, Setting]) -> dict[str, Any]:
    """Measure with this process's bench."""
    assert _bench is not None
    return _bench.measure(*task)
