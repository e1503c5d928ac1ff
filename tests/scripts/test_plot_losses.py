"""scripts/plot_losses.py: the values of all pieces of a run."""

import sys
from pathlib import Path

import pytest

from tests.programs import load_script


def test_a_resumed_run_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("plot_losses")
    for version, rows in enumerate(("1,4.0,\n2,3.0,5.0", "2,3.0,4.5\n3,2.0,")):
        folder = tmp_path / "vqvae" / "csv" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step,train/loss,val/loss\n{rows}\n")
    assert script.read(tmp_path / "vqvae", "train/loss") == ([1, 2, 3], [4, 3, 2])
    assert script.read(tmp_path / "vqvae", "val/loss") == ([2], [4.5])
    drawn = []
    for name in ("a.svg", "b.svg"):
        monkeypatch.setattr(sys, "argv", ["plot_losses", str(tmp_path / "vqvae"), "-o", str(tmp_path / name)])
        script.main()
        drawn.append((tmp_path / name).read_bytes())
    assert drawn[0] == drawn[1]
    assert b"<svg" in drawn[0]
