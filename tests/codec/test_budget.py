"""A weights file cannot make its reader allocate more than its own tensors justify."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glc.codec.budget import Budget, OverBudgetError
from glc.codec.errors import WeightsError
from glc.codec.weights import read_weights
from tests.codec.fixed_model import fixed_codec_weights


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("encoder", "channels"), 1 << 20),
        (("decoder", "latent_channels"), 1 << 30),
        (("encoder", "multipliers"), [1] * 5 + [1 << 16]),
        (("encoder", "num_blocks"), 1 << 40),
        (("coder", "hyper", "codebook_size"), 1 << 36),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_descriptions_of_huge_networks(path: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    good = fixed_codec_weights(tmp_path / "good.safetensors")
    with safe_open(good, framework="pt") as opened:
        metadata = dict(opened.metadata())
    description = json.loads(metadata["model"])
    place = description
    for key in path[:-1]:
        place = place[key]
    assert path[-1] in place
    place[path[-1]] = value
    bad = tmp_path / "bad.safetensors"
    save_file(load_file(good), bad, {**metadata, "model": json.dumps(description)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=r"bad\.safetensors.*which its file does not have"):
        read_weights(bad)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


def test_every_way_to_ask_for_elements_is_counted() -> None:
    for make in (
        lambda: torch.empty(300, 400),
        lambda: torch.zeros((300, 400)),
        lambda: torch.ones(size=(300, 400)),
        lambda: torch.randn(torch.Size([120000])),
        lambda: torch.full((120000,), 0.5),
        lambda: torch.arange(120000),
        lambda: torch.linspace(0, 1, 120000),
        lambda: torch.eye(350),
        lambda: torch.nn.Linear(300, 398),
        lambda: [torch.empty(1) for _ in range(120)],
    ):
        with Budget(123000):
            make()
        with pytest.raises(OverBudgetError, match="more than 110,000 numbers"), Budget(110000):
            make()
