"""Complexity: counts against counting by hand and by computing; times and memory that are what they say."""

import json
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from glc.cli import main
from glc.codec.codec import Codec
from glc.codec.weights.file import read_weights
from glc.evaluation.complexity import (
    ENTROPY_CODING,
    Complexity,
    Measurement,
    Seconds,
    Stopwatch,
    macs_by_part,
    measure,
    parameters_by_part,
    to_markdown,
    watched,
)
from glc.models.glc import count_parameters
from tests.codec.fixed_model import CHANNELS, CODES, Coder, Hyper, fixed_codec_weights
from tests.programs import start


def make(folder: Path, hyper: Hyper = "categorical", coder: Coder = "transform") -> Codec:
    return Codec(read_weights(fixed_codec_weights(folder / "weights.safetensors", hyper, coder)))


@pytest.fixture
def codec(tmp_path: Path) -> Codec:
    return make(tmp_path)


@pytest.mark.parametrize(
    ("hyper", "coder"),
    [("categorical", "transform"), ("factorized", "transform"), ("categorical", "indices_map")],
)
def test_parameters_of_the_parts_are_all_parameters(tmp_path: Path, hyper: Hyper, coder: Coder) -> None:
    model = make(tmp_path, hyper, coder).model
    found = parameters_by_part(model)
    assert sum(found.values()) == count_parameters(model)
    assert {"E", "D"} <= found.keys()
    # The density of a factorised z is no network.
    assert ("other" in found) == (hyper == "factorized")


@pytest.mark.parametrize("coder", ["transform", "indices_map"])
def test_operations_are_those_of_computing(tmp_path: Path, coder: Coder) -> None:
    model = make(tmp_path, coder=coder).model
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, 3, 64, 96), 0)
    assert 2 * sum(macs_by_part(model, (96, 64)).values()) == counter.get_total_flops()


def test_counts_by_hand(codec: Codec) -> None:
    assert parameters_by_part(codec.model)["C_h"] == CODES * CHANNELS
    # The search of the nearest code: each of 2 x 3 vectors of z with each code.
    assert macs_by_part(codec.model, (96, 64))["C_h"] == 6 * CODES * CHANNELS


def test_operations_are_counted_at_the_padded_size(codec: Codec) -> None:
    assert codec.model.stride == 32
    assert macs_by_part(codec.model, (33, 1)) == macs_by_part(codec.model, (64, 32))


def test_time_inside_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    stopwatch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with stopwatch.stage("outer"):
            spend(1)
            with stopwatch.stage("inner"):
                spend(10)
            spend(2)
            with stopwatch.stage("inner"):
                spend(20)
    with suppress(ValueError), stopwatch.stage("failing"):
        spend(100)
        raise ValueError
    assert stopwatch.seconds == {"inner": 60, "outer": 6, "failing": 100}


@pytest.mark.parametrize("coder", ["transform", "indices_map"])
def test_watching_changes_nothing(tmp_path: Path, coder: Coder) -> None:
    codec = make(tmp_path, coder=coder)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    before = codec.compress(image)
    with watched(codec) as stopwatch:
        assert codec.compress(image) == before
        encoding = set(stopwatch.seconds)
        codec.decompress(before)
    own = {"g_a", "h_a, C_h", "integer networks"} if coder == "transform" else {"codebook search"}
    assert encoding == {"E", ENTROPY_CODING} | own
    assert set(stopwatch.seconds) - encoding == ({"D", "g_s"} if coder == "transform" else {"D"})
    seconds = dict(stopwatch.seconds)
    assert codec.compress(image) == before
    assert stopwatch.seconds == seconds


PEAK = """
import numpy as np, torch
from glc.evaluation.complexity import PeakMemory
start = PeakMemory(torch.device("cpu"))
if start.bytes() is not None:
    before = start.bytes()
    held = np.ones(200_000_000, np.uint8)
    del held
    # A peak: it stays after the memory is free again, until somebody looks anew.
    assert start.bytes() >= before + 190_000_000, (before, start.bytes())
    peak = start.bytes()
    assert PeakMemory(torch.device("cpu")).bytes() <= peak - 150_000_000
"""


def test_peak_memory() -> None:
    # In a process of its own: this one has freed memory that it may hold, give back, or use again.
    done = start(["-c", PEAK])
    assert done.returncode == 0, done.stderr


def test_measures_the_files_that_are_written(codec: Codec) -> None:
    small, large = (measure(codec, size, 30, repeats=2) for size in ((40, 33), (160, 128)))
    assert (small.width, small.height) == (40, 33)
    assert small.file_bytes < large.file_bytes
    for way in (small.encode, large.encode, small.decode, large.decode):
        assert 0 < way.entropy_coding <= way.total
        assert way.networks == way.total - way.entropy_coding


def complexity() -> Complexity:
    sizes = {"width": 768, "height": 512, "file_bytes": 700}
    seconds = {"encode": Seconds(1.5, 0.25), "decode": Seconds(2.0, 0.5)}
    measured = Measurement("cpu", "abacus", 2, **sizes, **seconds, peak_memory_bytes=None)
    parameters = dict.fromkeys(("E", "g_a", "h_a", "C_h", "h_s", "context", "g_s", "D"), 1_000_000)
    macs = {part: 10**9 * i for i, part in enumerate(parameters, start=1)}
    return Complexity("some", "ab" * 32, 50, parameters, {"768x512": macs}, [measured])


def test_tables() -> None:
    text = to_markdown(complexity())
    assert "| context | 1.000 | 6.00 |" in text
    assert "| all | 8.000 | 36.00 |" in text
    # h_s and the context work in both directions: 1 + 2 + 3 + 4 + 5 + 6 and 5 + 6 + 7 + 8.
    assert "| encode | 6.000 | 21.00 |" in text
    assert "| decode | 4.000 | 26.00 |" in text
    assert "| cpu | 768x512 | 700 | 1.500 | 1.250 | 2.000 | 1.500 | – |" in text
    assert "abacus, 2 threads" in text
    assert "Published, not measured here" in text
    assert "Published" not in to_markdown(complexity(), published=False)


def test_totals_in_json() -> None:
    found = json.loads(json.dumps(complexity().to_json()))
    assert found["macs"]["768x512"]["encode"] == 21 * 10**9
    (measured,) = found["measurements"]
    assert measured["encode"] == {"total": 1.5, "entropy_coding": 0.25}
    assert measured["peak_memory_bytes"] is None


def test_command(tmp_path: Path) -> None:
    weights = fixed_codec_weights(tmp_path / "some.safetensors")
    out = tmp_path / "new"
    options = ["--size", "64x32", "--size", "32x32", "--repeats", "1", "--device", "cpu"]
    done = CliRunner().invoke(main, ["complexity", str(weights), *options, "-o", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads((out / "complexity.json").read_text())
    assert list(found["macs"]) == ["64x32", "32x32"]
    assert [(m["width"], m["height"]) for m in found["measurements"]] == [(64, 32), (32, 32)]
    assert found["fingerprint"] == read_weights(weights).fingerprint
    assert (out / "complexity.md").read_text() in done.output


@pytest.mark.parametrize("size", ["64", "0x5", "-1x5", "64x", "axb"])
def test_command_refuses_strange_sizes(tmp_path: Path, size: str) -> None:
    done = CliRunner().invoke(main, ["complexity", "x", f"--size={size}", "-o", str(tmp_path / "new")])
    assert done.exit_code == 2
    assert f"invalid size {size!r}" in done.output
    assert not (tmp_path / "new").exists()
