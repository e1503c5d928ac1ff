"""The option `--optimize-latent` of `glc compress`: latent optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from glc.cli.errors import NothingDoneError, message

if TYPE_CHECKING:
    from glc.latent_optimization import LatentOptimizer


def refuse_effort(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Refuse the name that `--optimize-latent` had in version 0.1.

    Raises:
        click.UsageError: the option is given.
    """
    if value is not None:
        raise click.UsageError(f"--effort is now --optimize-latent: give --optimize-latent {value}")


def check_options(steps: int, weights_dir: str | None, encoder: str | None) -> None:
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


def make_optimizer(steps: int, weights_dir: str | None) -> LatentOptimizer | None:
    """Return a latent optimiser of a number of steps, or None for 0.

    Raises:
        NothingDoneError: LPIPS or its weights are missing.
    """
    if not steps:
        return None
    try:
        from glc.latent_optimization import LatentOptimizer

        return LatentOptimizer(steps, weights_dir=weights_dir)
    except ImportError as error:
        wanted = f"--optimize-latent needs the package {error.name}: pip install 'glc-codec[eval]'"
        raise NothingDoneError(wanted) from error
    except (ValueError, OSError, RuntimeError) as error:
        raise NothingDoneError(f"--optimize-latent: {message(error)}; or --lpips-weights FOLDER") from error
