"""The benchmarks that measure only when they are named, from their command to their figures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from benchmarks.__main__ import main
from glc.cli import main as glc
from tests.codec.fixed_model import fixed_codec_weights, fixed_picture


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Leave the number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def measured(folder: Path, name: str, *words: object) -> dict[str, Any]:
    weights = fixed_codec_weights(folder / "fixed.safetensors")
    main(
        [
            name,
            "--weights",
            str(weights),
            "--rounds",
            "1",
            "--threads",
            "1",
            "--output",
            str(folder),
            *map(str, words),
        ]
    )
    return json.loads((folder / f"{name}.json").read_text())


def test_the_profile_accounts_for_the_whole_time(tmp_path: Path) -> None:
    Image.fromarray(fixed_picture(96, 64)).save(tmp_path / "a.png")
    sides = measured(tmp_path, "profile", "--picture", tmp_path / "a.png")["sides"]
    assert list(sides) == ["compress", "decompress"]
    for side, parts in (("compress", {"E", "g_a", "entropy coding"}), ("decompress", {"D", "g_s"})):
        assert parts <= sides[side]["details"].keys()
        assert sum(sides[side]["details"].values()) == pytest.approx(100)


def test_the_rate_cost_is_small_and_counted_once(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(fixed_picture(192, 128)).save(tmp_path / "images" / "a.png")
    report = measured(tmp_path, "rate_cost", "--pictures", tmp_path / "images", "--rounds", 2)
    assert list(report["sides"]) == [f"rate {rate}" for rate in range(4)]
    assert report["rounds"] == 1
    for side in report["sides"].values():
        # The same bits in float and in whole numbers; a file ends on a whole word.
        assert abs(side["details"]["exact, %"]) < 0.1
        assert abs(side["details"]["tables, %"]) < 1
        assert 0 < side["details"]["payload, %"] < 5
    with pytest.raises(SystemExit, match="--pictures FOLDER"):
        main(["rate_cost", "--weights", str(tmp_path / "fixed.safetensors")])


def test_shards_are_compressed_by_whole_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run_here(words: list[str], check: bool, env: dict[str, str]) -> None:
        given = words[words.index("compress") :]
        place = given.index("--processes") + 1
        asked.append(given[place])
        given[place] = "1"  # others would each import all there is
        result = CliRunner().invoke(glc, given, catch_exceptions=False)
        totals = json.loads((tmp_path / "compressed" / "manifest.json").read_text())["totals"]
        assert (result.exit_code, totals["samples"], totals["done"]) == (0, 96, 96)

    monkeypatch.setattr("benchmarks.shards.subprocess.run", run_here)
    monkeypatch.setattr("benchmarks.shards.SIDE", 24)
    report = measured(tmp_path, "shards")
    assert asked == ["1", "2"]
    assert list(report["sides"]) == ["1 process", "2 processes"]
    assert {reading["units"] for side in report["readings"].values() for reading in side} == {96}
