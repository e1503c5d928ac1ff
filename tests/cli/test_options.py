"""The option --trust."""

import os

import click
import pytest
from click.testing import CliRunner

from glc.cli import main
from glc.cli.options import trust_option
from glc.codec.weights.trust import VARIABLE


@pytest.mark.parametrize("before", [None, "others"])
def test_the_environment_names_the_packages_while_the_command_runs(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    @trust_option
    def show() -> None:
        click.echo(os.environ.get(VARIABLE, "nothing"))

    monkeypatch.delenv(VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    assert CliRunner().invoke(show).stdout.strip() == (before or "nothing")
    found = CliRunner().invoke(show, ["--trust", "mine", "--trust", "more.nets"]).stdout.strip()
    assert found == ",".join([*([before] if before else []), "mine", "more.nets"])
    assert os.environ.get(VARIABLE) == before


@pytest.mark.parametrize("command", ["compress", "decompress", "export", "convert", "serve", "complexity"])
def test_commands_that_open_weights_have_the_option(command: str) -> None:
    assert "--trust PACKAGE" in CliRunner().invoke(main, [*command.split(), "--help"]).stdout
