"""The stress harness: comparison, kills and options."""

import random
import shutil
from pathlib import Path

import pytest

from tests.evaluation.fake_run import write_run
from tests.programs import Started
from tests.stress.harness import Stress, contents, kill_and_resume


def test_comparison_ignores_only_times(tmp_path: Path) -> None:
    write_run(tmp_path / "one" / "slim", "slim")
    shutil.copytree(tmp_path / "one", tmp_path / "other")

    def differs(name: str, old: str, new: str) -> bool:
        path = tmp_path / "other" / "slim" / name
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new, 1))
        found = contents(tmp_path / "one") != contents(tmp_path / "other")
        path.write_text(before)
        return found

    assert not differs("summary.json", '"encode_seconds": 0.5', '"encode_seconds": 7.25')
    assert not differs("per_image.csv", "0.5,0.25", "1e-05,3.0")
    assert differs("summary.json", '"bpp": 0.02', '"bpp": 0.020000000000000004')
    assert differs("per_image.csv", "harbour", "market")


def test_command_that_fails_is_not_started_again() -> None:
    with pytest.raises(AssertionError, match="broken"):
        kill_and_resume(
            lambda: Started(["-c", "raise SystemExit('broken')"]), lambda _: bool, 0, random.Random(0)
        )


def test_options_are_parsed_or_refused() -> None:
    found = Stress.read(True, ["rounds=7", "weights=small", "output=here"])
    assert (found.count(1, 2), found.weights, found.output) == (7, "small", Path.cwd() / "here")
    assert (Stress.read(True, []).count(1, 2), Stress.read(False, []).count(1, 2)) == (2, 1)
    with pytest.raises(ValueError, match="round=7: give KEY=VALUE, KEY one of"):
        Stress.read(True, ["round=7"])
