"""`glc models`, `glc convert` and `glc export`."""

import json
from pathlib import Path

import pytest

import glc as library
from glc.codec.weights.file import read_weights
from glc.codec.weights.variants import save_variant
from tests.cli.conftest import Glc, image


def test_models_lists_the_known_models(glc: Glc, models: Path) -> None:
    rows = {row.pop("name"): row for row in json.loads(glc("models", "--json").stdout)}
    assert list(rows) == ["other", "small"]
    file = models / "small.safetensors"
    assert rows["small"] == {
        "default": True,
        "fingerprint": library.load(file, "cpu").weights.fingerprint,
        "rates": [{"lmbda": 1.0}, {"lmbda": 2.0}, {"lmbda": 4.0}, {"lmbda": 8.0}],
        "file": str(file),
        "bytes": file.stat().st_size,
        "encoders": [],
        "decoders": [],
    }
    assert not rows["other"]["default"]
    text = glc("models").stdout
    for name, row in rows.items():
        (line,) = (line for line in text.splitlines() if line.startswith(name))
        assert row["fingerprint"][:8] in line
        assert line.endswith(row["file"])


def test_models_lists_variants_below_their_model(glc: Glc, models: Path) -> None:
    codec = read_weights(models / "other.safetensors")
    part = models / "moved.encoder.safetensors"
    state, description = codec.model.encoder.state_dict(), codec.description["encoder"]
    save_variant(part, "encoder", state, description, codec.fingerprint, {})
    try:
        lines = glc("models").stdout.splitlines()
        rows = {row["name"]: row for row in json.loads(glc("models", "--json").stdout)}
    finally:
        part.unlink()
    other = next(at for at, line in enumerate(lines) if line.startswith("other"))
    assert [at for at, line in enumerate(lines) if line == "  --encoder moved"] == [other + 1]
    assert [rows[name]["encoders"] for name in ("other", "small")] == [["moved"], []]
    assert not rows["other"]["decoders"]


def test_models_reports_invalid_files_and_lists_the_others(
    glc: Glc, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "good.safetensors").symlink_to(models / "small.safetensors")
    monkeypatch.setenv("GLC_MODELS", str(tmp_path))
    result = glc("models")
    assert result.exit_code == 1
    assert f"{tmp_path / 'text.safetensors'}: not a safetensors file" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "\ngood " in result.stdout
    # The other models remain usable.
    assert glc("compress", image("a.png"), "--model", "good").exit_code == 0
    assert glc("decompress", "a.glc", "--force").exit_code == 0


def test_models_without_any_model(glc: Glc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glc.pretrained.__path__", [])
    monkeypatch.setenv("GLC_MODELS", "nowhere")
    result = glc("models", "--json")
    assert json.loads(result.stdout) == []
    assert result.exit_code == 1
    assert result.stderr == "GLC_MODELS=nowhere: no such folder\n"
    monkeypatch.delenv("GLC_MODELS")
    result = glc("models")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "GLC_MODELS" in result.stderr


def test_models_are_listed_without_parsing_their_tables(glc: Glc, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("tables were parsed")

    glc("compress", image("a.png"))
    monkeypatch.setattr("glc.codec.entropy.tables.Tables.from_json", fail)
    assert "small *" in glc("models").stdout
    assert "rate index  " in glc("info", "a.glc").stdout
