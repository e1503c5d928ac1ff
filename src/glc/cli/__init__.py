"""The `glc` command.

Each command's module is imported when the command is named, and each imports what it needs when it runs, so
that `glc --help` and `glc info` answer at once.
"""

import logging
import sys
from importlib import import_module
from typing import cast

import click

from glc import __version__
from glc.cli.errors import Commands
from glc.io import threads_policy
from glc.io.names import escape_output

_MODULES = {
    **dict.fromkeys(("compress", "decompress"), "compress"),
    "info": "info",
    **dict.fromkeys(("models", "convert"), "models"),
    **dict.fromkeys(("pack", "train"), "experiments"),
    "export": "models",
    "push": "hub",
    **dict.fromkeys(("eval", "report", "dashboard", "complexity"), "experiments"),
    "serve": "serve",
}
"""The module of each command, in the order of the help."""
_NAMES = {"eval": "evaluate"}
"""Functions that are not called like their command."""


class _Main(Commands):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        module = import_module(f"glc.cli.{_MODULES[cmd_name]}")
        return cast(click.Command, getattr(module, _NAMES.get(cmd_name, cmd_name)))


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glc")
@click.option("-v", "--verbose", is_flag=True, help="Show choices made for this machine.")
@click.pass_context
def main(ctx: click.Context, verbose: bool) -> None:
    """Generative Latent Coding: an image codec for ultra-low bitrates, and the tools to train it."""
    if verbose:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("glc").setLevel(logging.DEBUG)
    # Training and evaluation choose when they know their configuration; `info` should answer at once.
    if ctx.invoked_subcommand not in ("train", "eval", "info"):
        threads_policy.choose(sys.argv[1:])
    escape_output()
