"""`--trust` names packages for the time of one command, also to the processes that it starts."""

import os

import pytest

from glc.cli.trust import VARIABLE
from glc.codec.codec import Codec
from tests.cli.runs import Glc, picture


@pytest.mark.parametrize("before", [None, "first"])
def test_packages_are_trusted_while_the_command_runs(
    glc: Glc, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    picture("a.png")
    if before is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, before)
    seen = []

    def compress(*_: object, **__: object) -> bytes:
        seen.append(os.environ.get(VARIABLE))
        return b"data"

    monkeypatch.setattr(Codec, "compress", compress)
    assert glc("compress", "a.png", "--trust", "mine", "--trust", "other.nets").exit_code == 0
    assert glc("compress", "a.png", "--force").exit_code == 0
    assert seen == [",".join(filter(None, [before, "mine", "other.nets"])), before]
    assert os.environ.get(VARIABLE) == before


@pytest.mark.parametrize(
    "command", ["compress", "decompress", "export", "train", "eval", "complexity", "serve"]
)
def test_commands_that_open_weights_have_the_option(glc: Glc, command: str) -> None:
    assert "--trust PACKAGE" in glc(command, "--help").stdout
