"""scripts/evaluation_resume.py: what it calls a difference, and what it refuses. Kills are in test_run.py."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tests.evaluation.fake_run import write_run
from tests.evaluation.stand_ins import write_pictures
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("evaluation_resume")


def test_seconds_are_no_difference_and_all_else_is(tmp_path: Path, script: ModuleType) -> None:
    write_run(tmp_path / "one" / "slim", "slim")
    shutil.copytree(tmp_path / "one", tmp_path / "other")

    def change(name: str, old: str, new: str) -> list[str]:
        path = tmp_path / "other" / "slim" / name
        before = path.read_bytes()
        assert old.encode() in before
        path.write_bytes(before.replace(old.encode(), new.encode(), 1))
        found = script.differences(tmp_path / "one", tmp_path / "other", ["slim"])
        path.write_bytes(before)
        return found

    assert change("summary.json", '"encode_seconds": 0.5', '"encode_seconds": 7.25') == []
    assert change("per_image.csv", "0.5,0.25", "1e-05,3.0") == []
    assert change("summary.json", '"bpp": 0.02', '"bpp": 0.020000000000000004') == ["slim/summary.json"]
    assert change("per_image.csv", "harbour", "market") == ["slim/per_image.csv"]
    assert change("per_image.csv", "100,0.02", "101,0.02") == ["slim/per_image.csv"]


def test_what_it_cannot_do_is_said_first(
    tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_pictures(tmp_path / "set", [(24, 32)])
    with pytest.raises(SystemExit):
        script.main(["--pictures", str(pictures), "--count", "2", "--output", str(tmp_path / "out")])
    assert "1 files, and --count asks for 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        script.main(["--pictures", str(pictures), "--count", "1", "--output", str(tmp_path)])
    assert "not empty" in capsys.readouterr().err
