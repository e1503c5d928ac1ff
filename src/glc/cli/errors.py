"""Errors of the command line: one line on stderr and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import click

ONE_FAILED = 1
"""Exit code when some of several inputs failed, or when a command without input files failed."""
NOTHING_DONE = 2
"""Exit code of usage errors, and when the only input failed or nothing could be started."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""


class Commands(click.Group):
    """Command group that reports errors as one line, with exit code 1 (usage errors: 2)."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own; some of them are RuntimeErrors
        except KeyboardInterrupt:
            click.echo("\nInterrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise click.ClickException(message(error)) from error
            wanted = "this command needs PyTorch; run pip install 'glc-codec[torch]'"
            raise NothingDoneError(wanted) from error
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            raise click.ClickException(message(error)) from error


class NothingDoneError(click.ClickException):
    """Nothing could be started."""

    exit_code = NOTHING_DONE


@contextmanager
def needs(extra: str, *packages: str) -> Iterator[None]:
    """Guard the imports of a command: name the extra to install when a package is missing.

    Args:
        extra: the extra of this project that contains the packages.
        packages: packages to check now although they are imported later.

    Raises:
        NothingDoneError: a package is missing.
    """
    try:
        for name in packages:
            if find_spec(name) is None:
                raise ModuleNotFoundError(name=name)
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "glc":
            raise
        text = f"{error.name}: package not installed; run pip install 'glc-codec[{extra}]'"
        raise NothingDoneError(text) from error


def message(error: BaseException) -> str:
    """Return an error's message as one line."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{click.format_filename(error.filename)}: " if error.filename is not None else ""
        return name + error.strerror
    if _is_out_of_memory(error):
        return "out of memory"
    return " ".join(str(error).split()) or type(error).__name__


def message_about(name: str, error: BaseException) -> str:
    """Return an error's message as one line that starts with the file's name."""
    text = message(error)
    return text if text.startswith(f"{name}: ") else f"{name}: {text}"


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means out of memory in Python or torch."""
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        # torch's allocator on the CPU raises a plain RuntimeError.
        if isinstance(error, RuntimeError) and "allocate memory" in str(error):
            return True
        error = error.__cause__
    return False
