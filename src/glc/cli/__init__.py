"""The `glc` command.

Each command imports what it needs when it runs, so that `glc --help` answers at once.
"""

import sys

import click

from glc import __version__
from glc.cli.compress import compress, decompress
from glc.cli.errors import Commands
from glc.cli.experiments import complexity, dashboard, evaluate, pack, report, train
from glc.cli.models import convert, export, info, models
from glc.cli.serve import serve
from glc.io import threads_policy


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glc")
def main() -> None:
    """Generative Latent Coding: an image codec for ultra-low bitrates, and the tools to train it."""
    threads_policy.choose(sys.argv[1:])


for _command in (
    *(compress, decompress, info, models),
    *(convert, pack, train, export),
    *(evaluate, report, dashboard, complexity, serve),
):
    main.add_command(_command)
