import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from PIL import Image

from glc import __version__
from glc.cli import main


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "images"
    source.mkdir()
    for i in range(3):
        Image.new("RGB", (32 + i, 32), (i * 80, 0, 0)).save(source / f"{i}.png")
    return source


def glc(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_pack_writes_shards_and_prints_a_summary(folder, tmp_path):
    (folder / "bad.png").write_bytes(b"x")
    result = glc("pack", folder, tmp_path / "out", "--per-shard", 2, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "3 images in 2 shards" in result.stdout
    assert "skipped bad.png: not an image" in result.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["totals"]["count"] == 3


def test_pack_samples(tmp_path):
    result = glc("pack", "--samples", "test", tmp_path / "test", "--size", 64, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "3 images in 1 shard," in result.stdout


def test_usage_errors_exit_with_2(folder, tmp_path):
    for arguments in (
        ["pack", tmp_path / "out"],
        ["pack", folder, "--samples", "train", tmp_path / "out"],
        ["pack", folder, tmp_path / "out", "--size", 0],
        ["pack", folder, tmp_path / "out", "--sized", 64],
        ["compres"],
    ):
        result = glc(*arguments)
        assert result.exit_code == 2, arguments
        assert "Error:" in result.stderr
    assert not (tmp_path / "out").exists()


def test_failures_are_one_line_and_exit_with_1(folder, tmp_path):
    result = glc("pack", tmp_path / "nowhere", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.strip() == f"Error: {tmp_path / 'nowhere'}: no such folder or file"
    assert glc("pack", folder, tmp_path / "set", "--workers", 1).exit_code == 0
    result = glc("pack", folder, tmp_path / "set", "--size", 16, "--workers", 1)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert glc("pack", folder, tmp_path / "set", "--size", 16, "--workers", 1, "--force").exit_code == 0


def test_help_needs_no_heavy_import():
    code = (
        "import sys; sys.argv = ['glc', 'pack', '--help']\n"
        "from glc.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--samples" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "old", "new"),
    [
        (["export", "--photos", "x"], "--photos", "--images"),
        (["report", "--pictures=3"], "--pictures", "--images"),
    ],
)
def test_renamed_options_are_refused_with_the_new_name(arguments, old, new):
    result = glc(*arguments)
    assert result.exit_code == 2
    assert result.stderr.endswith(f"Error: {old}: renamed in 0.2; use {new}\n")
    assert old not in glc(arguments[0], "--help").stdout


def test_version():
    assert __version__ in glc("--version").stdout


def test_verbose_shows_how_threads_wait(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    done = subprocess.run(
        [sys.executable, "-m", "glc", "--verbose", "models"], capture_output=True, text=True, check=True
    )
    assert done.stderr == "threads: OMP_WAIT_POLICY=active (from the environment)\n"
