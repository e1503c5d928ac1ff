"""The `glc` command.

Each command imports what it needs when it runs, so that `glc --help` answers at once.
"""

import logging
import sys

import click

from glc import __version__
from glc.cli.compress import compress, decompress
from glc.cli.errors import Commands
from glc.cli.experiments import complexity, dashboard, evaluate, pack, report, train
from glc.cli.info import info
from glc.cli.models import convert, export, models
from glc.cli.serve import serve
from glc.io import threads_policy
from glc.io.names import escape_output


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glc")
@click.option("-v", "--verbose", is_flag=True, help="Show choices made for this machine.")
@click.pass_context
def main(ctx: click.Context, verbose: bool) -> None:
    """Generative Latent Coding: an image codec for ultra-low bitrates, and the tools to train it."""
    if verbose:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("glc").setLevel(logging.DEBUG)
    if ctx.invoked_subcommand not in ("train", "eval"):  # they choose when they know their configuration
        threads_policy.choose(sys.argv[1:])
    escape_output()


for _command in (
    *(compress, decompress, info, models),
    *(convert, pack, train, export),
    *(evaluate, report, dashboard, complexity, serve),
):
    main.add_command(_command)
