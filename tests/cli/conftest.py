"""Two small known models, and a fixture that runs commands in this process."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glc.cli import main
from tests.cli.runs import Glc
from tests.codec.fixed_model import fixed_codec_weights


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `small` and `other`."""
    folder = tmp_path_factory.mktemp("models")
    fixed_codec_weights(folder / "small.safetensors")
    fixed_codec_weights(folder / "other.safetensors", seed=1, z_table=True)
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
