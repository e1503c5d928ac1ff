"""The option `--trust` of the commands that open weights files."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from glc.codec.weights.trust import VARIABLE


def trust_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--trust` to a command; while it runs, the environment variable names the packages."""
    return click.option(
        "--trust",
        metavar="PACKAGE",
        multiple=True,
        expose_value=False,
        callback=_trust,
        help=f"Package whose networks a weights file may use; runs its code. Repeatable.  [env: {VARIABLE}]",
    )(command)


def _trust(ctx: click.Context, parameter: click.Parameter, packages: tuple[str, ...]) -> None:
    if packages:
        ctx.with_resource(_trusting(packages))


@contextmanager
def _trusting(packages: tuple[str, ...]) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where `glc train` finds a package that is not installed, too
    os.environ[VARIABLE] = ",".join([*([before] if before else []), *packages])
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
