"""The benchmarks' medians and ratios, and one benchmark from command to files."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.readings import Benchmark, Reading, compare, run


def test_ratios_are_of_medians_per_unit() -> None:
    base = [Reading(2, seconds, 4.0) for seconds in (2.0, 8.0, 4.0)]
    other = [Reading(1, seconds, 0.5, details={"part": seconds / 2}) for seconds in (1.0, 9.0, 0.5)]
    found = compare({"base": base, "other": other})
    assert found["base"]["seconds"] == 2.0
    assert found["base"]["times_as_fast"] == 1.0
    assert found["other"]["times_as_fast"] == 2.0
    assert found["other"]["times_as_fast_by_processor"] == 4.0
    assert found["other"]["per_second"] == 1.0
    assert found["other"]["details"] == {"part": 0.5}


def test_finished_benchmark_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["entropy", "--rounds", "1", "--threads", "1", "--output", str(tmp_path), "--resume"]
    main(command)
    report = json.loads((tmp_path / "entropy.json").read_text())
    assert list(report["sides"]) == ["library's Gaussians", "our tables"]
    library, ours = report["sides"].values()
    # Both come near the entropy of the same symbols.
    bits = [side["details"]["bits per symbol"] for side in (library, ours)]
    assert bits[1] == pytest.approx(bits[0], rel=0.02)
    assert (tmp_path / "entropy.md").read_text().strip() in capsys.readouterr().out
    assert not list(tmp_path.glob("*.readings.json"))
    (tmp_path / "entropy_z.json").unlink()
    main(command)
    assert "entropy: skipped, already measured" in capsys.readouterr().err
    assert (tmp_path / "entropy_z.json").is_file()
    main([*command, "--threads", "2"])
    assert "skipped" not in capsys.readouterr().err
    assert json.loads((tmp_path / "entropy.json").read_text())["settings"]["threads"] == 2


def test_interrupted_benchmark_resumes_at_the_next_reading(tmp_path: Path) -> None:
    taken: list[str] = []

    def side(name: str, last: int) -> Reading:
        if len(taken) == last:
            raise KeyboardInterrupt
        taken.append(name)
        return Reading(1, len(taken), 0.5, details={"part": 0.25})

    def benchmark(last: int = 99, about: str = "one") -> Benchmark:
        return Benchmark("b", "u", about, {name: lambda name=name: side(name, last) for name in "ab"})

    notes = tmp_path / "out" / "b.readings.json"
    with pytest.raises(KeyboardInterrupt):
        run(benchmark(last=3), 2, notes)
    report = run(benchmark(), 2, notes)
    assert taken == ["a", "b", "a", "b"]
    assert [reading["seconds"] for reading in report["readings"]["b"]] == [2, 4]
    run(benchmark(about="another"), 1, notes)
    assert taken == ["a", "b"] * 3
    # Readings of another device do not count either.
    run(benchmark(about="another"), 1, notes, {"device": "another"})
    assert taken == ["a", "b"] * 4


def test_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "unknown benchmark: speed" in capsys.readouterr().err
