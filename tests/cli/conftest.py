"""Two small known models, commands in this process, and test images."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from glc.cli import main
from tests.codec.fixed_model import fixed_codec_weights, fixed_image

Glc = Callable[..., Result]
"""Takes arguments and, as `stdin`, bytes for standard input."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `small` and `other`."""
    folder = tmp_path_factory.mktemp("models")
    fixed_codec_weights(folder / "small.safetensors")
    fixed_codec_weights(folder / "other.safetensors", seed=1, z="one")
    return folder


@pytest.fixture
def glc(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Glc:
    """Run the command in an empty folder, in which the two models are known."""
    monkeypatch.setenv("GLC_MODELS", str(models))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def image(path: str | Path, height: int = 40, width: int = 50, seed: int = 0) -> Path:
    """Write an image and return its path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(fixed_image(height, width, seed)).save(path)
    return Path(path)


def tree(folder: str | Path) -> list[str]:
    """Return the files under a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())
