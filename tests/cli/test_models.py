"""`glc info` and `glc models`."""

import json
from pathlib import Path

import pytest

import glc as library
from glc.codec.weights.file import read_weights
from glc.codec.weights.variants import save_variant
from tests.cli.conftest import Glc, image


def test_info_shows_the_header(glc: Glc, models: Path) -> None:
    glc("compress", image("a.png", 30, 40), "--quality", 25, "--model", "other")
    data = Path("a.glc").read_bytes()
    expected = {
        "file": "a.glc",
        "version": 1,
        "width": 40,
        "height": 30,
        "rate_index": 0.75,
        "bytes": len(data),
        "bpp": 8 * len(data) / 1200,
        "fingerprint": library.load(models / "other.safetensors", "cpu").fingerprint.hex(),
        "model": "other",
    }
    assert json.loads(glc("info", "a.glc", "--json").stdout) == expected
    assert json.loads(glc("info", "-", "--json", stdin=data).stdout) == expected | {"file": "standard input"}
    text = glc("info", "a.glc").stdout
    for part in ("40 x 30", "0.750 of 0 to 3", f"{len(data):,} bytes", str(expected["fingerprint"]), "other"):
        assert part in text


def test_info_needs_no_weights_and_reports_unreadable_files(
    glc: Glc, monkeypatch: pytest.MonkeyPatch
) -> None:
    glc("compress", image("a.png"))
    monkeypatch.setenv("GLC_MODELS", "nowhere")
    result = glc("info", "a.glc", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["model"] is None
    assert "unknown" in glc("info", "a.glc").stdout
    for name, message in ((".", "Is a directory"), ("missing.glc", "No such file or directory")):
        result = glc("info", name)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"{name}: {message}\n"


def test_info_of_a_weights_file_names_the_command_for_models(glc: Glc, models: Path) -> None:
    file = models / "small.safetensors"
    result = glc("info", file)
    assert result.exit_code == 2
    assert result.stderr == f"{file}: a weights file, not a .glc file; list models with `glc models`\n"


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
