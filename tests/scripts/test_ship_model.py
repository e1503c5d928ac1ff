"""scripts/ship_model.py: the training record and the golden files."""

import json
import sys
from pathlib import Path

import pytest

import glc
from glc.errors import WeightsError
from tests.codec.fixed_model import fixed_codec_weights
from tests.programs import load_script

script = load_script("ship_model")


def test_golden_files_decode_to_the_recorded_integers(tmp_path: Path) -> None:
    codec = glc.load(fixed_codec_weights(tmp_path / "fixed.safetensors"), "cpu")
    script.golden(codec, tmp_path / "golden")
    note = json.loads((tmp_path / "golden" / "golden.json").read_text())
    assert note["fingerprint"] == codec.weights.fingerprint
    assert len(note["files"]) == len(script.GOLDEN) * len(script.QUALITIES)
    for name, about in note["files"].items():
        data = (tmp_path / "golden" / name).read_bytes()
        left, top, right, bottom = about["box"]
        assert codec.decompress(data).size == (right - left, bottom - top)
        assert script.digest(codec.symbols(data)) == about["symbols"]


def test_record_has_all_validations_and_no_absolute_paths(tmp_path: Path) -> None:
    for version, rows in enumerate(("10,,0.5\n20,1.0,\n20,,0.4", "20,,0.3\n30,,0.2")):
        folder = tmp_path / "csv" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step,train/loss,val/loss\n{rows}\n")
    rows = list(script.validation_rows(tmp_path))
    assert rows == [{"step": str(s), "val/loss": v} for s, v in ((10, "0.5"), (20, "0.3"), (30, "0.2"))]
    settings = {"data": {"train": f"{tmp_path}/data/small/train"}, "lr": [1e-4, "cosine"]}
    assert script.without_folders(settings) == {"data": {"train": "small/train"}, "lr": [1e-4, "cosine"]}


def test_missing_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["ship_model", "mine", "--runs", str(tmp_path / "runs")])
    assert script.main() == 2
    assert "runs/vqvae/checkpoints/last.ckpt" in capsys.readouterr().err


def test_stage_without_a_run_keeps_its_record(tmp_path: Path) -> None:
    earlier = {stage: {"steps": 7} for stage in script.STAGES}
    (tmp_path / "record.json").write_text(json.dumps({"stages": earlier}))
    assert script.record(tmp_path / "runs", tmp_path) == earlier
    (tmp_path / "runs" / "joint").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"joint/checkpoints/last.ckpt"):
        script.record(tmp_path / "runs", tmp_path)
