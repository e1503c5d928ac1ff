"""Shared by all benchmarks: alternating sides, medians, ratios to a baseline of the same run."""

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Reading:
    """Cost of one measurement of a side.

    `units` is the amount of work; `seconds` is wall time; `processor` is the processor time of all threads
    and finished child processes, in seconds, which depends less on other load; `peak_gb` is the peak memory
    of the process or the GPU.
    """

    units: float
    seconds: float
    processor: float
    peak_gb: float = 0.0
    details: dict[str, float] = field(default_factory=dict)
    """Seconds per stage, or other values, by name."""


@dataclass
class Benchmark:
    """Sides that do the same work; the first is the baseline."""

    name: str
    unit: str
    about: str
    """Description of the baseline and the details, one or two sentences."""
    sides: Mapping[str, Callable[[], Reading]]
    once: bool = False
    """The details are deterministic: one round is enough."""


class Clock:
    """Wall and processor seconds since construction."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        wait(device)
        self._wall, self._processor = time.perf_counter(), processor_seconds()

    def reading(self, units: float, **details: float) -> Reading:
        """Return the time since construction as a reading."""
        wait(self.device)
        seconds = time.perf_counter() - self._wall
        taken = processor_seconds() - self._processor
        return Reading(units, seconds, taken, peak_gb(self.device), details)


def wait(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def processor_seconds() -> float:
    """Return the processor seconds of this process, its threads, and its finished children."""
    own, children = (
        resource.getrusage(target) for target in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return sum(usage.ru_utime + usage.ru_stime for usage in (own, children))


def peak_gb(device: torch.device) -> float:
    """Return peak memory: of torch's tensors on a GPU, else of the process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9


def is_done(benchmark: Benchmark, settings: Mapping[str, Any], folder: Path) -> bool:
    """Whether a folder has a report of a benchmark with the same settings."""
    path = folder / f"{benchmark.name}.json"
    if not path.is_file():
        return False
    report = json.loads(path.read_text())
    return report["about"] == benchmark.about and report.get("settings") == settings


def run(
    benchmark: Benchmark, rounds: int, notes: Path | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Measure the sides alternately, `rounds` times, and return the report.

    Args:
        benchmark: the sides.
        rounds: number of measurements per side.
        notes: file to record each reading in; readings in it of the same benchmark are not repeated.
        settings: recorded in report and notes; recorded readings count only if their settings are equal.
    """
    found: dict[str, list[Reading]] = {side: [] for side in benchmark.sides}
    if notes is not None and notes.is_file():
        noted = json.loads(notes.read_text())
        if noted["about"] == benchmark.about and noted["settings"] == settings:
            found |= {side: [Reading(**each) for each in noted["readings"].get(side, [])] for side in found}
    for number in range(rounds):
        for side, measure in benchmark.sides.items():
            if len(found[side]) > number:
                continue
            reading = measure()
            found[side].append(reading)
            if notes is not None:
                readings = {each: [asdict(one) for one in taken] for each, taken in found.items()}
                _write_json(notes, {"about": benchmark.about, "settings": settings, "readings": readings})
            each = f"{1e3 * reading.seconds / reading.units:.4g} ms per {benchmark.unit}"
            print(f"{benchmark.name}, round {number + 1}, {side}: {each}", file=sys.stderr, flush=True)
    return {
        "name": benchmark.name,
        "unit": benchmark.unit,
        "about": benchmark.about,
        "rounds": rounds,
        "settings": settings,
        "machine": machine(),
        "sides": compare(found),
        "readings": {side: [asdict(reading) for reading in each] for side, each in found.items()},
    }


def compare(found: Mapping[str, list[Reading]]) -> dict[str, dict[str, Any]]:
    """Return medians of each side per unit, and their ratios to the first side; above 1 is better."""
    made: dict[str, dict[str, Any]] = {}
    for side, readings in found.items():
        seconds = statistics.median(r.seconds / r.units for r in readings)
        processor = statistics.median(r.processor / r.units for r in readings)
        made[side] = {
            "seconds": seconds,
            "processor": processor,
            "per_second": 1 / seconds,
            "peak_gb": statistics.median(r.peak_gb for r in readings),
            "details": {
                name: statistics.median(r.details[name] for r in readings) for name in readings[0].details
            },
        }
    base = next(iter(made.values()))
    for each in made.values():
        for name, key in (("times_as_fast", "seconds"), ("times_as_fast_by_processor", "processor")):
            each[name] = base[key] / each[key] if each[key] else float("nan")
    return made


def machine() -> dict[str, Any]:
    """Return processor, GPU, threads and versions of this machine."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load": round(load, 2),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def table(report: Mapping[str, Any]) -> str:
    """Return a report as Markdown."""
    unit, sides = report["unit"], report["sides"]
    base = next(iter(sides))
    head = ["side", f"{unit}s / s", f"ms / {unit}", f"processor ms / {unit}", "peak GB"]
    head += [f"x {base}", f"x {base}, processor"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for side, each in sides.items():
        cells = [each["per_second"], 1e3 * each["seconds"], 1e3 * each["processor"], each["peak_gb"]]
        cells += [each["times_as_fast"], each["times_as_fast_by_processor"]]
        rows.append([side, *(f"{value:,.4g}" for value in cells)])
    text = f"## {report['name']}\n\n{report['about']}\n\n{_markdown(rows)}"
    names = list(dict.fromkeys(name for each in sides.values() for name in each["details"]))
    if names:
        rows = [["of it", *sides], ["---"] + ["---:"] * len(sides)]
        for name in names:
            found = [each["details"].get(name) for each in sides.values()]
            rows.append([name, *("" if value is None else f"{value:.4g}" for value in found)])
        text += f"\n\n{_markdown(rows)}"
    return text


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Write `NAME.md`, then `NAME.json`, whose presence marks the benchmark as finished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{report['name']}.md").write_text(table(report) + "\n")
    _write_json(folder / f"{report['name']}.json", report)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)
