"""scripts/ablations.py: what its table says, and how a row gets another window."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import load_script

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("ablations")


def test_the_table_gives_the_rate_that_a_row_needs_more(script: ModuleType, tmp_path: Path) -> None:
    curve = [(0.02, 0.5), (0.03, 0.4), (0.045, 0.34), (0.06, 0.31)]
    for row, stage, factor in (("full", "transform", 1), ("full", "joint", 1), ("factorized", "joint", 1.25)):
        points = [{"bpp": factor * bpp, "lpips": lpips} for bpp, lpips in curve]
        (tmp_path / row / stage).mkdir(parents=True)
        (tmp_path / row / stage / "summary.json").write_text(json.dumps({"points": points}))
    rows = {line.split("|")[1].strip(): line for line in script.table(tmp_path, "lpips").splitlines()[2:]}
    assert list(rows) == ["full", "factorized"]
    assert rows["factorized"].split("|")[4:7] == ["  ", " +25.0 % ", " +17.7 % "]


def test_every_window_of_an_architecture_is_changed(script: ModuleType) -> None:
    described = {"encoder": {"window": 32, "stages": [{"window": 32, "width": 8}]}, "name": "window"}
    assert script.change_window(described, None) == {
        "encoder": {"window": None, "stages": [{"window": None, "width": 8}]},
        "name": "window",
    }


def test_a_call_ends_with_the_stage_that_it_is_given(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(script, "call", lambda *words: called.append(tuple(map(str, words))))
    words: list[object] = ["ablations", "factorized", "--until", "transform", "--steps", "transform=7"]
    for name in ("start", "shards", "weights", "pictures", "output"):
        words += [f"--{name}", tmp_path / name]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    assert script.main() == 0
    trained, exported, measured = called
    assert {"stage=transform", "model/variants=factorized", "trainer.max_steps=7"} <= set(trained)
    assert exported[2] == "export"
    assert f"out={tmp_path / 'output' / 'factorized' / 'transform'}" in measured
