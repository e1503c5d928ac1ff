"""The marker and the options of the stress tests."""

import dataclasses
from pathlib import Path

import pytest

from tests.codec.fixed_model import fixed_codec_weights
from tests.stress.harness import Stress


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark all tests of this folder; the long form has no time limit."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.stress)
            if config.getoption("--long"):
                item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def stress(request: pytest.FixtureRequest, tmp_path: Path) -> Stress:
    """Options of the stress tests in this session."""
    try:
        found = Stress.read(request.config.getoption("--long"), request.config.getoption("--stress"))
    except ValueError as error:
        raise pytest.UsageError(f"--stress {error}") from None
    weights = found.weights or fixed_codec_weights(tmp_path / "fixed.safetensors")
    return dataclasses.replace(found, weights=weights, output=found.output or tmp_path)
