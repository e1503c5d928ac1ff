"""Weights files with some part changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from glc.codec.weights.file import Weights, read_weights, save_weights
from tests.codec.variants import Variants

Edit = Callable[[dict[str, Tensor], dict[str, str]], object]


@pytest.fixture
def weights(variants: Variants, request: pytest.FixtureRequest) -> Weights:
    """The weights of one variant, by default the first, in tensors of their own."""
    return read_weights(variants.weights(getattr(request, "param", "categorical")))


@pytest.fixture
def saved(weights: Weights, tmp_path: Path) -> Callable[..., Path]:
    """Save the weights with some arguments of `save_weights` changed; return the file."""

    def saved(**changes: Any) -> Path:
        path = tmp_path / "saved.safetensors"
        own = {name: getattr(weights, name) for name in ("description", "tables", "rates")}
        save_weights(path, **{"state": weights.model.state_dict(), **own, **changes})
        return path

    return saved


@pytest.fixture
def rewrite(variants: Variants, tmp_path: Path) -> Callable[..., Path]:
    """Write a file again after an edit of its tensors and metadata, with the fingerprints of before."""

    def rewrite(edit: Edit, source: Path | None = None) -> Path:
        source = source or variants.weights("categorical")
        with safe_open(source, framework="pt") as opened:
            tensors, metadata = load_file(source), dict(opened.metadata())
        edit(tensors, metadata)
        save_file(tensors, tmp_path / "changed.safetensors", metadata)
        return tmp_path / "changed.safetensors"

    return rewrite
