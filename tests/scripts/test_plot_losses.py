"""scripts/plot_losses.py: values of a run over all its CSV files."""

import sys
from pathlib import Path

import pytest

from tests.programs import load_script


def test_resumed_run_is_one_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("plot_losses")
    for version, rows in enumerate(("1,4.0,\n2,3.0,5.0", "2,3.0,4.5\n3,2.0,")):
        folder = tmp_path / "vqvae" / "csv" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step,train/loss,val/loss\n{rows}\n")
    assert script.read(tmp_path / "vqvae", "train/loss") == ([1, 2, 3], [4, 3, 2])
    assert script.read(tmp_path / "vqvae", "val/loss") == ([2], [4.5])
    rendered = []
    for name in ("a.svg", "b.svg"):
        monkeypatch.setattr(sys, "argv", ["plot_losses", str(tmp_path / "vqvae"), "-o", str(tmp_path / name)])
        script.main()
        rendered.append((tmp_path / name).read_bytes())
    assert rendered[0] == rendered[1]
    assert b"<svg" in rendered[0]
