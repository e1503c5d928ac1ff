"""Complexity of a codec: parameters and operations by network, time and memory by image size and device."""

import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from glc.codec.codec import Codec
from glc.codec.stages import ENTROPY_CODING
from glc.data.images import padded_size
from glc.evaluation.tables import NOTHING, ResultTable, published_latencies
from glc.models.coder import TransformCoder
from glc.models.glc import GLC, count_parameters

FORMAT = 1
ENCODES = ("E", "g_a", "h_a", "C_h", "h_s", "context", "coder")
"""Networks used in compression; the encoder also runs the decoder's prediction."""
DECODES = ("h_s", "context", "g_s", "refiner", "D")
"""Networks used in decompression."""

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Seconds:
    """Median wall-clock times over repeated calls."""

    total: float
    """From image to file in memory, or back."""
    entropy_coding: float
    """Part of the total."""

    @property
    def networks(self) -> float:
        """The total without entropy coding."""
        return self.total - self.entropy_coding


@dataclass(frozen=True)
class Measurement:
    """Time and memory for an image size on a device."""

    device: str
    device_name: str
    threads: int
    width: int
    height: int
    file_bytes: int
    encode: Seconds
    decode: Seconds
    peak_memory_bytes: int | None
    """GPU: allocated by torch; CPU: resident memory of the process; None: not available."""


@dataclass(frozen=True)
class Complexity:
    """All measurements of a codec."""

    model: str
    fingerprint: str
    quality: float
    parameters: Mapping[str, int]
    macs: Mapping[str, Mapping[str, int]]
    """By size, such as `768x512`, then by network."""
    measurements: Sequence[Measurement]
    versions: Mapping[str, str] = field(default_factory=lambda: {"torch": torch.__version__})

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serialisable values."""
        found = {"format": FORMAT, **asdict(self)}
        for size, parts in self.macs.items():
            found["macs"][size] = {**parts, "encode": total(parts, ENCODES), "decode": total(parts, DECODES)}
        return found


def parts_of(model: GLC) -> dict[str, nn.Module]:
    """Return the networks of a codec by their names in the paper, in the order of data flow."""
    coder = model.coder
    parts: dict[str, nn.Module] = {"E": model.encoder}
    if isinstance(coder, TransformCoder):
        parts |= {"g_a": coder.analysis, "h_a": coder.hyper.analysis}
        quantizer = getattr(coder.hyper, "quantizer", None)
        if quantizer is not None:
            parts["C_h"] = quantizer
        parts |= {"h_s": coder.hyper.synthesis, "context": coder.context, "g_s": coder.synthesis}
    else:
        parts["coder"] = coder
    if model.refiner is not None:
        parts["refiner"] = model.refiner
    return {**parts, "D": model.decoder}


def parameters_by_part(model: GLC) -> dict[str, int]:
    """Return the parameters of each network, and `other` for the rest, such as a factorised density."""
    found = {name: count_parameters(part) for name, part in parts_of(model).items()}
    rest = count_parameters(model) - sum(found.values())
    return {**found, "other": rest} if rest else found


def macs_by_part(model: GLC, size: Size) -> dict[str, int]:
    """Return the multiply-accumulate operations of each network for one image.

    Counts convolutions, matrix products and attention, at the padded size, each network once.

    Args:
        model: the networks; only their shapes are used.
    """
    height, width = padded_size(size[1], size[0], model.stride)
    counter = FlopCounterMode(display=False)
    device = next(model.parameters()).device
    # Fake tensors: only shapes are propagated.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counter:
        model(torch.zeros(1, 3, height, width, device=device), 0)
    counts = counter.get_flop_counts()
    names = {id(module): name for name, module in model.named_modules()}
    found = {}
    for part, module in parts_of(model).items():
        key = f"{type(model).__name__}.{names[id(module)]}"
        found[part] = sum(counts.get(key, {}).values()) // 2
    return found


def total(parts: Mapping[str, int], names: Sequence[str]) -> int:
    """Return the sum over the named parts that exist."""
    return sum(parts.get(name, 0) for name in names)


def measure(codec: Codec, size: Size, quality: float = 50, repeats: int = 3) -> Measurement:
    """Measure time and memory for one image size on the codec's device.

    The image is smooth random noise, seeded. One warm-up call per direction is not counted.

    Args:
        quality: 0 to 100.
        repeats: number of calls; the median is returned.
    """
    image = _image(size)
    data = codec.compress(image, quality)
    memory = PeakMemory(codec.device)
    encode = _time(codec, lambda: codec.compress(image, quality), repeats)
    decode = _time(codec, lambda: codec.decompress(data), repeats)
    return Measurement(
        device=str(codec.device),
        device_name=device_name(codec.device),
        threads=torch.get_num_threads(),
        width=size[0],
        height=size[1],
        file_bytes=len(data),
        encode=encode,
        decode=decode,
        peak_memory_bytes=memory.bytes(),
    )


def _time(codec: Codec, call: Callable[[], object], repeats: int) -> Seconds:
    call()
    totals, codings = [], []
    for _ in range(repeats):
        wait(codec.device)
        start = time.perf_counter()
        call()
        wait(codec.device)
        totals.append(time.perf_counter() - start)
    # Separately, because synchronising the device at each stage takes time.
    with watched(codec) as stopwatch:
        for _ in range(repeats):
            stopwatch.seconds.clear()
            call()
            codings.append(stopwatch.seconds[ENTROPY_CODING])
    median = statistics.median(totals)
    return Seconds(median, min(median, statistics.median(codings)))


def _image(size: Size) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def device_name(device: torch.device) -> str:
    """Return the model name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def devices_present() -> list[str]:
    """Return `cpu`, and `cuda` if available."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def name_of(size: Size) -> str:
    """Format a size for tables: `768x512`."""
    return f"{size[0]}x{size[1]}"


def tables(found: Complexity, published: bool = True) -> list[tuple[str, ResultTable]]:
    """Return the measurements as tables with headings."""
    sizes = list(found.macs)
    rows = []
    for part in [*found.parameters, "all"]:
        count = sum(found.parameters.values()) if part == "all" else found.parameters[part]
        macs = [sum(m.values()) if part == "all" else m.get(part, 0) for m in found.macs.values()]
        rows.append([part, f"{count / 1e6:.3f}", *(f"{m / 1e9:.2f}" for m in macs)])
    for name, names in (("encode", ENCODES), ("decode", DECODES)):
        used = total(found.parameters, names)
        macs = [total(m, names) for m in found.macs.values()]
        rows.append([name, f"{used / 1e6:.3f}", *(f"{m / 1e9:.2f}" for m in macs)])
    made = [
        (
            "Parameters and operations",
            ResultTable(
                ["part", "parameters (M)", *(f"GMAC, {size}" for size in sizes)],
                rows,
                notes=["A MAC is one multiply-accumulate. h_s and the context work in both directions."],
            ),
        )
    ]
    header = ["device", "size", "file (bytes)"]
    header += [f"{way} (s){part}" for way in ("encode", "decode") for part in ("", ", networks only")]
    header.append("peak memory (MB)")
    rows = [
        [
            m.device,
            name_of((m.width, m.height)),
            str(m.file_bytes),
            *(f"{seconds:.3f}" for way in (m.encode, m.decode) for seconds in (way.total, way.networks)),
            NOTHING if m.peak_memory_bytes is None else f"{m.peak_memory_bytes / 1e6:.0f}",
        ]
        for m in found.measurements
    ]
    devices = {m.device: f"{m.device}: {m.device_name}, {m.threads} threads." for m in found.measurements}
    memory = "Peak memory: CPU: resident memory of the process; GPU: allocated by torch."
    made.append(("Time and memory", ResultTable(header, rows, 2, [*devices.values(), memory])))
    if published:
        latencies = published_latencies()
        rows = [
            [e["codec"], e["device"], e["size"], f"{e['encode']:g}", f"{e['decode']:g}", f"{e['params_m']:g}"]
            for e in latencies
        ]
        sources = "; ".join(sorted({str(e["source"]) for e in latencies}))
        head = ["codec", "device", "size (height x width)", "encode (ms)", "decode (ms)", "parameters (M)"]
        made.append(
            (
                "Published, not measured here",
                ResultTable(head, rows, text_columns=3, notes=[f"Sources: {sources}."]),
            )
        )
    return made


def to_markdown(found: Complexity, published: bool = True) -> str:
    """Return the measurements as Markdown."""
    intro = f"Model {found.model}, weights {found.fingerprint[:16]}, quality {found.quality:g}.\n"
    sections = (f"## {heading}\n\n{table.to_markdown()}" for heading, table in tables(found, published))
    return "\n".join([f"# Complexity\n\n{intro}", *sections])


_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Stopwatch:
    """Sums the wall-clock time of stages; the time of an inner stage is not counted in the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._inner = [0.0]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block under a name."""
        wait(self._device)
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            wait(self._device)
            elapsed = time.perf_counter() - start
            self.seconds[name] += elapsed - self._inner.pop()
            self._inner[-1] += elapsed


def wait(device: torch.device) -> None:
    """Wait until a device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def watched(codec: Codec) -> Iterator[Stopwatch]:
    """Time the stages of a codec within the block, by the names that `Codec.observe` lists."""
    stopwatch = Stopwatch(codec.device)
    with codec.observe(stopwatch.stage):
        yield stopwatch


class PeakMemory:
    """Peak memory since the object was created.

    GPU: torch's allocations. CPU: resident memory of the process, including libraries and weights; only on
    Linux, which can reset the peak.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._possible = device.type == "cuda"
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif device.type == "cpu":
            try:
                _CLEAR.write_text("5")
                self._possible = self._resident_peak() is not None
            except OSError:
                self._possible = False

    def bytes(self) -> int | None:
        """Return the peak so far; None if not available."""
        if not self._possible:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return self._resident_peak()

    @staticmethod
    def _resident_peak() -> int | None:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
