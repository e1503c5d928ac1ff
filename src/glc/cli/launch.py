"""The commands that Hydra configures: `glc train` and `glc eval`.

Their help, completion and checks are those of `glc.launch.commands`.
"""

from typing import Any

import click

from glc.cli.errors import needs
from glc.cli.trust import trust_option


class _Configured(click.Command):
    """A command whose help is written by `glc.launch.help`."""

    def get_help(self, ctx: click.Context) -> str:
        """Return the help, with the options of this command."""
        from glc.launch.help import help_text

        formatter = ctx.make_formatter()
        self.format_options(ctx, formatter)
        return f"{help_text(self._config_name, f'glc {self.name}')}\n\n{formatter.getvalue()}"

    @property
    def _config_name(self) -> str:
        return "evaluate" if self.name == "eval" else "train"


SETTINGS: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
"""Hydra's own flags, such as `-m` and `--cfg job`, pass through."""

_words = click.argument("arguments", metavar="[KEY=VALUE]...", nargs=-1, type=click.UNPROCESSED)


@click.command("train", cls=_Configured, context_settings=SETTINGS)
@_words
@trust_option
def train(arguments: tuple[str, ...]) -> None:
    """Train a stage of a codec."""
    with needs("train", "hydra", "torchvision", "torchmetrics", "lpips", "webdataset"):
        from glc.launch.commands import train as main

        main(arguments, program="glc train")


@click.command("eval", cls=_Configured, context_settings=SETTINGS)
@click.option(
    "--shards",
    multiple=True,
    metavar="PATTERN",
    help="Tar shards of images: a file, a folder, or a pattern like 'val-{000..099}.tar'. Repeatable.",
)
@_words
@trust_option
def evaluate(arguments: tuple[str, ...], shards: tuple[str, ...]) -> None:
    """Evaluate codecs on a folder of images or a test set."""
    unnamed = shards and not any(word.startswith("testset=") for word in arguments)
    with needs("eval", "hydra", "torchvision", "torchmetrics", "lpips"):
        from glc.launch.commands import evaluate as main

        main([*arguments, *(["testset=shards"] if unnamed else [])], shards, program="glc eval")
