"""The option `--effort` of `glc compress`: latent optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from glc.cli.errors import NothingDoneError, message

if TYPE_CHECKING:
    from glc.latent_search import Effort


def check_effort(steps: int, weights_dir: str | None, encoder: str | None) -> None:
    """Refuse options that exclude each other.

    Raises:
        click.UsageError: they do.
    """
    if steps and encoder is not None:
        raise click.UsageError(
            "--effort cannot be combined with --encoder, which intentionally changes the image"
        )
    if weights_dir is not None and not steps:
        raise click.UsageError("--lpips-weights goes with --effort")


def make_effort(steps: int, weights_dir: str | None) -> Effort | None:
    """Return the latent optimisation of a number of steps, or None for 0.

    Raises:
        NothingDoneError: LPIPS or its weights are missing.
    """
    if not steps:
        return None
    try:
        from glc.latent_search import Effort

        return Effort(steps, weights_dir=weights_dir)
    except ImportError as error:
        wanted = f"--effort needs the package {error.name}: pip install 'glc-codec[eval]'"
        raise NothingDoneError(wanted) from error
    except (ValueError, OSError, RuntimeError) as error:
        raise NothingDoneError(f"--effort: {message(error)}; or --lpips-weights FOLDER") from error
