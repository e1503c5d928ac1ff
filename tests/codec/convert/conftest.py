"""Small third-party files, made once."""

from pathlib import Path

import pytest
import torch

from tests.codec.convert.stand_ins import layouts, stand_ins


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small files of the three kinds, to be read only."""
    folder = tmp_path_factory.mktemp("published")
    paths = {}
    for kind, layout in layouts().items():
        paths[kind] = folder / f"{kind}.pth"
        torch.save(stand_ins(layout), paths[kind])
    return paths
