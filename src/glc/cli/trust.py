"""The option `--trust` of the commands that open weights files."""

import os
from collections.abc import Callable
from typing import Any

import click

VARIABLE = "GLC_TRUST"
"""Environment variable that names trusted packages; it reaches the processes that a command starts, too."""


def _add(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    before = os.environ.get(VARIABLE)
    if not value:
        return
    os.environ[VARIABLE] = ",".join(filter(None, [before, *value]))

    def restore() -> None:
        os.environ.pop(VARIABLE, None) if before is None else os.environ.update({VARIABLE: before})

    ctx.call_on_close(restore)


def trust_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--trust PACKAGE`: a weights file that is opened may name classes of that package."""
    return click.option(
        "--trust",
        multiple=True,
        metavar="PACKAGE",
        expose_value=False,
        callback=_add,
        help="Installed package of your own whose networks a weights file may name; it is imported.",
    )(command)
