"""What the documents print must run: every training command in them composes."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.overrides import explain_unknown_keys
from src.train import register_resolvers

ROOT = Path(__file__).parents[1]
PLACES = {"$D": "data.train=a data.val=b", "STAGE": "joint", "$stage": "joint"}


def commands() -> list[str]:
    found = []
    for path in [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "conf").rglob("*.yaml")),
    ]:
        text = path.read_text().replace("\\\n", " ")
        for match in re.finditer(r"python -m src\.train ([^`#\n;(]*[\w$\]])", text):
            arguments = match[1]
            for name, value in PLACES.items():
                arguments = arguments.replace(name, value)
            found.append(re.sub(r"\[[^\]=]*=[^\]]*\]|\\.\.\.|#.*", "", arguments))
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_commands_compose(command: str) -> None:
    register_resolvers()
    words = [w for w in shlex.split(command) if "=" in w]
    assert explain_unknown_keys(words) is None
    first = [re.sub(r"=([^\[,]*),.*", r"=\1", w) for w in words] if " -m " in f" {command} " else words
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", first)
    if not OmegaConf.is_missing(cfg.data, "train"):
        assert cfg.data.batch_size >= 1


def test_there_are_commands() -> None:
    assert len(commands()) >= 10
