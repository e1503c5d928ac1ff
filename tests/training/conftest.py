"""Training images, and one run of the three stages."""

from pathlib import Path

import pytest

from tests.short_runs import QUIET, three_stages, write_images


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here uses the network."""
    for key, value in QUIET.items():
        monkeypatch.setenv(key, value)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six smooth random images, 192 x 192."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the three stages, trained for four steps each."""
    return three_stages(tmp_path_factory.getbasetemp())
