"""Test images, and commands in a separate process."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from click.testing import Result
from PIL import Image

from tests.codec.fixed_model import fixed_image

Glc = Callable[..., Result]
"""Takes arguments and, as `stdin`, bytes for standard input."""
MAIN = "from glc.cli import main; main()"
"""The code of the command `glc`."""


def image(path: str | Path, height: int = 40, width: int = 50, seed: int = 0) -> Path:
    """Write an image and return its path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(fixed_image(height, width, seed)).save(path)
    return Path(path)


def tree(folder: str | Path) -> list[str]:
    """Return the files under a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def separately(*arguments: object, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run `glc` in a separate process."""
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)
