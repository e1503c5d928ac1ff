"""Training images; no test here uses the network."""

from pathlib import Path

import pytest

from tests.short_runs import QUIET, write_images


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep W&B offline, and the search for weights on this machine."""
    for key, value in QUIET.items():
        monkeypatch.setenv(key, value)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six smooth random images, 192 x 192."""
    return write_images(tmp_path_factory.mktemp("images"))
