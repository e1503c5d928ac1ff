"""Notebooks have no outputs and few imports; scripts/run_notebooks.py reports failing cells."""

import ast
import json
from pathlib import Path

import nbformat
import pytest

import glc
from tests.codec.fixed_model import fixed_codec_weights
from tests.programs import ROOT, load_script

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ALLOWED = {"glc", "matplotlib", "numpy", "PIL", "torch", "io", "os", "warnings"}


def test_all_notebooks_are_found() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped_and_imports_are_allowed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    for cell in cells:
        assert cell.outputs == []
        assert cell.execution_count is None
        for node in ast.walk(ast.parse(cell.source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= ALLOWED
    assert {"kernelspec", "language_info"} == notebook.metadata.keys()


def test_model_variants_are_made_for_the_applications_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fixed_codec_weights(tmp_path / "mine.safetensors")
    seen = []

    def run(path: Path, folder: Path) -> None:
        codec = glc.load(model, "cpu")
        seen.append((sorted(glc.encoders(codec)), sorted(glc.decoders(codec))))

    script = load_script("run_notebooks")
    monkeypatch.setattr(script, "run", run)
    monkeypatch.setenv("GLC_NOTEBOOK_MODEL", str(model))
    monkeypatch.setenv("GLC_MODELS", "unset")
    monkeypatch.delenv("GLC_MODELS")
    monkeypatch.setattr("sys.argv", ["run_notebooks.py", "a.ipynb"])
    assert script.main() == 0
    assert seen == [(["own-denoise", "own-inpaint"], ["own-style"])]


def test_failing_cell_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("run_notebooks")
    notebook = json.loads(NOTEBOOKS[0].read_text())
    notebook["cells"] = [{**notebook["cells"][1], "source": ["assert 1 + 1 == 3, 'wrong sum'"]}]
    (tmp_path / "bad.ipynb").write_text(json.dumps(notebook))
    monkeypatch.setenv("GLC_MODELS", str(tmp_path))  # no variants are made
    monkeypatch.setattr("sys.argv", ["run_notebooks.py", str(tmp_path / "bad.ipynb")])
    assert script.main() == 1
    said = capsys.readouterr()
    assert "bad.ipynb" in said.out
    assert "FAILED" in said.out
    assert "wrong sum" in said.err
