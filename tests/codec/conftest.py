"""The three stages, trained in a row once."""

from pathlib import Path

import pytest

from tests.short_runs import three_stages


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the three stages, trained for four steps each."""
    return three_stages(tmp_path_factory.getbasetemp())
