"""Each benchmark at a small size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import glc
from benchmarks import codec, folder, loading, training
from benchmarks.__main__ import main
from benchmarks.random_weights import random_weights
from glc.cli import main as cli
from glc.codec.weights.file import read_weights
from tests.codec.fixed_model import fixed_codec_weights, fixed_image


def measured(folder: Path, name: str, *words: object) -> dict[str, Any]:
    weights = fixed_codec_weights(folder / "fixed.safetensors")
    options = ["--weights", weights, "--rounds", 1, "--threads", 1, "--output", folder, *words]
    main([name, *map(str, options)])
    return json.loads((folder / f"{name}.json").read_text())


def test_profile_sums_to_100_percent(tmp_path: Path) -> None:
    Image.fromarray(fixed_image(96, 64)).save(tmp_path / "a.png")
    sides = measured(tmp_path, "profile", "--image", tmp_path / "a.png")["sides"]
    assert list(sides) == ["compress", "decompress"]
    for side, parts in (("compress", {"E", "g_a", "entropy coding"}), ("decompress", {"D", "g_s"})):
        assert parts <= sides[side]["details"].keys()
        assert sum(sides[side]["details"].values()) == pytest.approx(100)


def test_rate_cost_is_small_and_measured_once(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(fixed_image(192, 128)).save(tmp_path / "images" / "a.png")
    report = measured(tmp_path, "rate_cost", "--images", tmp_path / "images", "--rounds", 2)
    assert list(report["sides"]) == [f"rate {rate}" for rate in range(4)]
    assert report["rounds"] == 1
    for side in report["sides"].values():
        # Float and integer networks give nearly the same bits; a file is padded to 32-bit words.
        assert abs(side["details"]["exact, %"]) < 0.1
        assert abs(side["details"]["tables, %"]) < 1
        assert 0 < side["details"]["payload, %"] < 5
    with pytest.raises(SystemExit, match="--images FOLDER"):
        main(["rate_cost", "--weights", str(tmp_path / "fixed.safetensors")])


def test_shards_are_compressed_by_complete_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run_here(words: list[str], check: bool, env: dict[str, str]) -> None:
        given = words[words.index("compress") :]
        index = given.index("--processes") + 1
        asked.append(given[index])
        given[index] = "1"  # each further process would import everything again
        result = CliRunner().invoke(cli, given, catch_exceptions=False)
        totals = json.loads((tmp_path / "compressed" / "manifest.json").read_text())["totals"]
        assert (result.exit_code, totals["samples"], totals["done"]) == (0, 96, 96)

    monkeypatch.setattr("benchmarks.shards.subprocess.run", run_here)
    monkeypatch.setattr("benchmarks.shards.SIDE", 24)
    report = measured(tmp_path, "shards")
    assert asked == ["1", "2"]
    assert list(report["sides"]) == ["1 process", "2 processes"]
    assert {reading["units"] for side in report["readings"].values() for reading in side} == {96}


def test_codec_and_folder_sides_are_measured(tmp_path: Path) -> None:
    weights = fixed_codec_weights(tmp_path / "fixed.safetensors")
    Image.fromarray(fixed_image(96, 64)).save(tmp_path / "a.png")
    shared = {"weights": str(weights), "quality": 30, "threads": 1, "device": "cpu"}
    one = {**shared, "image": str(tmp_path / "a.png"), "warm": 0}
    assert codec.measure({**one, "side": codec.PLAIN}).details == {}
    details = codec.measure({**one, "side": "auto"}).details
    assert {"compress", "decompress", "E ... D once", "E", "D"} <= details.keys()
    assert details["E"] < details["compress"]
    assert details["D"] < details["decompress"]
    for side in ("one by one", "batches of 8"):
        reading = folder.measure({**shared, "count": 2, "side": side})
        assert reading.units == 2
        assert sum(reading.details.values()) == pytest.approx(reading.seconds / 2)


def test_loading_counts_crops(tmp_path: Path) -> None:
    shards = str(loading.sample_shards(tmp_path, 4, loading.CROP, 2))
    assert loading.plain_loop(shards, 16).units == 16
    assert loading.ours(shards, 16, workers=0).units == 16


def test_training_step_is_measured() -> None:
    words = ("stage=vqvae", "model=tiny", "perceptual.net=squeeze", "stage.discriminator_start=0")
    reading = training.step(words, crop=64, batch=2, steps=1, device=torch.device("cpu"), threads=1)
    assert reading.units == 2
    assert reading.seconds > 0


def test_random_weights_make_a_codec(tmp_path: Path) -> None:
    seeds = enumerate((0, 0, 1))
    first, again, other = (random_weights(tmp_path / f"{i}.safetensors", "tiny", seed) for i, seed in seeds)
    marks = [read_weights(path).fingerprint for path in (first, again, other)]
    assert marks[0] == marks[1] != marks[2]
    file = glc.load(first, "cpu").compress(fixed_image(40, 50))
    assert glc.load(again, "cpu").decompress(file).size == (50, 40)
