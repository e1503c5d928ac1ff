"""Options that several commands share."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from glc.codec.weights.trust import VARIABLE

BACKENDS = ("auto", "torch", "onnx")
"""As in `glc.codec.load`, which commands that only show their help do not import."""

model_option = click.option(
    "--model", metavar="NAME|FILE", help="Known model (see `glc models`) or weights file."
)
device_option = click.option(
    "--device",
    metavar="auto|cpu|cuda",
    default="auto",
    show_default=True,
    help="Device that runs the networks.",
)


def _background(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if value == "white":  # the default; without importing NumPy and Pillow
        return value
    from glc.data.images import parse_background

    try:
        parse_background(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


background_option = click.option(
    "--background",
    metavar="COLOUR",
    default="white",
    show_default=True,
    callback=_background,
    help="Colour behind transparent pixels: a name or #rrggbb.",
)
quiet_option = click.option("--quiet", is_flag=True, help="Print errors only.")


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


def renamed_option(old: str, new: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds a hidden option with one value, refused with the name of its successor."""

    def refuse(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"{old}: renamed in 0.2; use {new}")

    # Eager: reported before missing arguments and errors of other options.
    return click.option(old, hidden=True, expose_value=False, is_eager=True, callback=refuse)


def check_target(quality: float | None, target_bpp: float | None, target_size: int | None) -> None:
    """Refuse more than one of quality, bits per pixel and bytes.

    Raises:
        click.UsageError: more than one is given.
    """
    if sum(value is not None for value in (quality, target_bpp, target_size)) > 1:
        raise click.UsageError(
            "--quality, --target-bpp and --target-size cannot be combined; give one of them"
        )


def check_latent_options(steps: int, weights_dir: str | None, encoder: str | None) -> None:
    """Check the options that latent optimisation excludes or requires.

    Raises:
        click.UsageError: --encoder is given too, or --lpips-weights alone.
    """
    if steps and encoder is not None:
        raise click.UsageError(
            "--optimize-latent cannot be combined with --encoder, which intentionally changes the image"
        )
    if weights_dir is not None and not steps:
        raise click.UsageError("--lpips-weights needs --optimize-latent STEPS")
