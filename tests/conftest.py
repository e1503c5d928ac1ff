"""What every test can rely on: a fixed seed, and no more threads than a small machine has."""

import pytest
import torch

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same random numbers, in whatever order the tests run."""
    torch.manual_seed(0)
