"""Completion of overrides, from Python and in bash."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glc.launch import UsageError
from glc.launch.completion import candidates, script
from tests.programs import ROOT


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("stage=", ["gate", "joint", "polish", "restoration", "stylization", "transform", "vqvae"]),
        ("stage=vqvae model=t", ["tiny"]),
        ("stage=vqvae --config-dir docs model=sm", ["small"]),
    ],
)
def test_choices_complete(line: str, expected: list[str]) -> None:
    group = line.split()[-1].partition("=")[0]
    assert candidates(line, "train") == [f"{group}={name}" for name in expected]


def test_keys_and_flags_complete() -> None:
    assert "trainer.max_steps=" in candidates("trainer.max_", "train")
    assert "stage.style=" in candidates("stage=stylization stage.st", "train")
    assert candidates("stage=vqvae --conf", "train") == ["--config-dir", "--config-name"]
    assert "codec=" in candidates("cod", "evaluate")
    assert candidates("stage=[ x", "train") == []


def test_other_shells_are_refused() -> None:
    with pytest.raises(UsageError, match="--completion sh: not supported; give bash, zsh, fish"):
        script("sh")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with `glc` and `python`, which run this interpreter."""
    (tmp_path / "glc").write_text(f'#!/bin/sh\nexec {sys.executable} -m glc "$@"\n')
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for path in tmp_path.iterdir():
        path.chmod(0o755)
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("python -m src.train stage=vqvae model=ti", ["tiny"]),
        ("python -m src.train stage=vqvae trainer.max_st", ["trainer.max_steps="]),
        ("glc train stage=vq", ["vqvae"]),
        ("glc train stage=", ["gate", "joint", "polish", "restoration", "stylization", "transform", "vqvae"]),
        ("python other.py mod", []),
    ],
)
def test_bash_completes_the_word_after_the_equals_sign(
    line: str, expected: list[str], programs: Path
) -> None:
    """The words are split as bash splits them, at spaces and `=`."""
    words = line.replace("=", " = ").split()
    asked = (
        f"{script('bash')}\ncompopt() {{ :; }}\nPATH={programs}:$PATH\n"
        f"COMP_LINE='{line}' COMP_POINT={len(line)}\n"
        f"COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}\n"
        '_glc_complete; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asked], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == expected, done.stderr


ZSH = """compdef() { :; }; _default() { :; }; _files() { :; }
compadd() { [[ $1 == -S ]] && shift 2; shift; print -l -- "$@"; }
"""
LINES = [
    ("python -m src.train stage=vqvae model=ti", ["model=tiny"]),
    ("glc train stage=vqvae trainer.max_st", ["trainer.max_steps="]),
    ("glc eval testset=fo", ["testset=folder"]),
    ("glc compress mod", []),
    ("python other.py mod", []),
]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
@pytest.mark.parametrize(("line", "expected"), LINES)
def test_zsh_completes_the_word(line: str, expected: list[str], programs: Path) -> None:
    """The variables of zsh's completion system are set as it sets them."""
    words = line.split()
    asked = (
        f"{ZSH}{script('zsh')}\nPATH={programs}:$PATH\ntypeset -A compstate=(nmatches 1)\n"
        f"words=({' '.join(words)}) CURRENT={len(words)} PREFIX='{words[-1]}'; _glc_complete"
    )
    done = subprocess.run(["zsh", "-fc", asked], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == expected, done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
@pytest.mark.parametrize(("line", "expected"), LINES)
def test_fish_completes_the_word(line: str, expected: list[str], programs: Path) -> None:
    asked = f"set -x PATH {programs} $PATH\n{script('fish')}\ncomplete -C '{line}'"
    done = subprocess.run(["fish", "-Nc", asked], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == expected, done.stderr
