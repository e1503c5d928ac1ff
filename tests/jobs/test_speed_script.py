"""`scripts/corpus_speed.py`: what it times is the command that a user would give."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from glc.cli import main
from tests.codec.fixed_model import fixed_codec_weights
from tests.scripts import load_script


def test_it_times_whole_compressions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = fixed_codec_weights(tmp_path / "fixed.safetensors")
    script = load_script("corpus_speed")
    asked: list[str] = []

    def run_here(words: list[str], check: bool) -> SimpleNamespace:
        given = words[words.index("-c") + 2 :]
        place = given.index("--processes") + 1
        asked.append(given[place])
        given[place] = "1"  # others would each import all there is
        result = CliRunner().invoke(main, given, catch_exceptions=False)
        manifest = json.loads((tmp_path / "speed" / "out" / "manifest.json").read_text())
        assert manifest["totals"]["samples"] == manifest["totals"]["done"] == 4
        return SimpleNamespace(returncode=result.exit_code)

    monkeypatch.setattr(script.subprocess, "run", run_here)
    words = f"corpus_speed --pictures 4 --shards 2 --side 64 --repeats 1 --least 0 --weights {weights}"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--output", str(tmp_path / "speed")])
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1" if name.startswith("OMP") else "")
    script.main()
    assert asked == ["1", "2"]
    report = json.loads((tmp_path / "speed" / "summary.json").read_text())
    assert [len(taken) for taken in report["seconds"].values()] == [1, 1]
