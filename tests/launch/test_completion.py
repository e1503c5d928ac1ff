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
        ("stage=", ["joint", "restoration", "stylization", "transform", "vqvae"]),
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


def test_only_bash_is_supported() -> None:
    with pytest.raises(UsageError, match="--completion fish: not supported; give bash"):
        script("fish")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("python -m src.train stage=vqvae model=ti", ["tiny"]),
        ("python -m src.train stage=vqvae trainer.max_st", ["trainer.max_steps="]),
        ("glc train stage=vq", ["vqvae"]),
        ("glc train stage=", ["joint", "restoration", "stylization", "transform", "vqvae"]),
        ("python other.py mod", []),
    ],
)
def test_bash_completes_the_word_after_the_equals_sign(
    line: str, expected: list[str], tmp_path: Path
) -> None:
    """The words are split as bash splits them, at spaces and `=`; the programs are this interpreter's."""
    (tmp_path / "glc").write_text(f'#!/bin/sh\nexec {sys.executable} -m glc "$@"\n')
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for path in tmp_path.iterdir():
        path.chmod(0o755)
    words = line.replace("=", " = ").split()
    asked = (
        f"{script('bash')}\ncompopt() {{ :; }}\nPATH={tmp_path}:$PATH\n"
        f"COMP_LINE='{line}' COMP_POINT={len(line)}\n"
        f"COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}\n"
        '_glc_complete; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asked], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == expected, done.stderr
