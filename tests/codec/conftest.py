"""Codecs of every kind, and short runs of the three stages, each made once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import glc
from tests.codec.variants import VARIANTS, Variants
from tests.short_runs import three_stages


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the three stages, trained for four steps each."""
    return three_stages(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Variants:
    """Return the weights files and codecs of all kinds."""
    return Variants(tmp_path_factory.mktemp("codecs"))


@pytest.fixture(params=VARIANTS)
def codec(request: pytest.FixtureRequest, variants: Variants) -> glc.Codec:
    """Return a codec of each kind in turn."""
    return variants.codec(request.param)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Set the number of PyTorch's threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
