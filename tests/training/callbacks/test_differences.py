"""The settings in which the runs of a sweep differ."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from glc.training.callbacks.differences import differences, settings_of


def settings(folder: str, lmbda: float, **more: Any) -> dict[str, Any]:
    module = {"lmbda": lmbda}  # refers to stage.lmbda
    stage = {"name": "transform", "lmbda": lmbda, "module": module}
    return {"dir": folder, "stage": stage, "last": {"dirpath": f"{folder}/checkpoints"}, "seed": 0, **more}


def test_only_differing_settings_are_shown_once_and_places_are_not() -> None:
    runs = {"a": settings("/runs/a", 1.0), "b": settings("/runs/b", 2.0, resume="auto")}
    assert differences(runs) == (["stage.lmbda"], [["a", "1.0"], ["b", "2.0"]])


def test_a_missing_key_and_null_are_shown_as_null() -> None:
    runs = {"a": settings("/runs/a", 1.0, clip=None), "b": settings("/runs/b", 1.0, clip=0.5)}
    assert differences(runs) == (["clip"], [["a", "null"], ["b", "0.5"]])
    assert differences({"a": {"x": {"y": 1}}, "b": {}}) == (["x.y"], [["a", "1"], ["b", "null"]])


def test_two_swept_keys_with_different_values_are_both_shown() -> None:
    runs = {f"{i}{j}": settings(f"/runs/{i}{j}", i, seed=j) for i in (1, 2) for j in (3, 4)}
    columns, rows = differences(runs)
    assert columns == ["seed", "stage.lmbda"]
    assert rows == [["13", "3", "1"], ["14", "4", "1"], ["23", "3", "2"], ["24", "4", "2"]]


def test_equal_runs_differ_in_nothing() -> None:
    assert differences({"a": settings("/a", 1.0), "b": settings("/b", 1.0)}) == ([], [["a"], ["b"]])


@pytest.mark.parametrize("written", [{}, {"version_0": {"seed": 1}, "version_1": {"seed": 2}}])
def test_settings_are_those_of_the_last_start(tmp_path: Path, written: dict[str, Any]) -> None:
    for at, (name, content) in enumerate(written.items()):
        file = tmp_path / "csv" / name / "hparams.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(yaml.safe_dump(content))
        os.utime(file, (at, at))
    assert settings_of(tmp_path) == ({"seed": 2} if written else None)


def test_settings_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "csv" / "version_0" / "hparams.yaml"
    file.parent.mkdir(parents=True)
    for text in ("seed: [1", "- 1\n"):
        file.write_text(text)
        assert settings_of(tmp_path) is None
