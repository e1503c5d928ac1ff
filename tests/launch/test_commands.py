"""Help, completion and refusals come at once, without importing torch."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from glc.cli import main as glc
from glc.launch import commands
from tests.programs import ROOT

SECONDS = 1.0
"""Limit on the processor's time, which other processes do not change."""


def timed(*words: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run a program in a new interpreter; return its processor time and its result."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, done


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["src.train", "--help"], 0, "Usage: python -m src.train"),
        (["src.train", "stage=vqvae", "--help"], 0, "Usage: python -m src.train"),
        (["glc", "train", "--help"], 0, "Usage: glc train"),
        (["src.evaluate", "-h"], 0, "Usage: python -m src.evaluate"),
        (["src.train"], 2, "error: stage: no value; give stage=..., one of gate, joint, "),
        (["glc", "train", "stage=vqvae", "trainer.devcies=8"], 2, "error: trainer.devcies: no such key; "),
        (
            ["src.train", "stage=vqvae", "overwrite=maybe"],
            2,
            "error: overwrite=maybe: not valid; give true or ",
        ),
        (
            ["src.train", "stage=vqvae", "data.train=nowhere", "data.val=docs"],
            2,
            "data.train: nowhere: no such ",
        ),
        (["glc", "eval", "codec=small"], 2, "error: out: no value; give out="),
        (["src.train", "--complete", "model=ti"], 0, "model=tiny"),
    ],
)
def test_answers_come_at_once(words: list[str], code: int, said: str) -> None:
    seconds, done = timed(*words)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == code
    assert said in done.stdout + "\n".join(lines)
    assert "Traceback" not in done.stderr
    assert len(lines) == (1 if code else 0)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "lightning", "wandb"}
    assert seconds < SECONDS


def test_the_help_names_groups_examples_and_the_listing_of_keys(capsys: pytest.CaptureFixture[str]) -> None:
    commands.train(["--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 60
    assert "gate, joint, polish, restoration, stylization, transform, vqvae" in text
    assert sum(line.startswith("  python -m src.train ") for line in text.splitlines()) == 5
    assert "--cfg job" in text
    shown = CliRunner().invoke(glc, ["eval", "--help"]).output
    assert "glc eval codec=small testset.path=IMAGES out=results/small" in shown
    assert "--shards PATTERN" in shown


def test_the_help_lists_choices_of_the_users_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("defaults: [tiny]\n")
    commands.train(["--config-dir", str(tmp_path), "--help"])
    assert "facial, mine, natural" in capsys.readouterr().out
