"""Row tiles of large maps: the same values as the complete map, bit for bit in integer networks."""

import numpy as np
import pytest
import torch
from torch import nn

import glc
from glc.codec.entropy import row_tiling
from glc.codec.entropy.integer_nets import to_integer_network
from glc.codec.entropy.row_tiling import halo, in_row_tiles
from glc.codec.runtime.resources import resident_memory
from glc.errors import MemoryLimitError
from glc.models.hyperprior import CategoricalHyperprior
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import Variants


def test_halo_covers_the_receptive_field() -> None:
    torch.manual_seed(0)
    hyper = CategoricalHyperprior(8, 4)
    for network, scale, side in ((hyper.analysis, 1 / 4, 64), (hyper.synthesis, 4, 24)):
        x = torch.randn(1, 8, side, 4, requires_grad=True)
        out = network(x)
        assert out.shape[2] == side * scale
        row = int(side * scale) // 2
        out[:, :, row].abs().sum().backward()
        assert x.grad is not None
        seen = (x.grad != 0).any(3).any(1)[0].nonzero().flatten()
        own = range(int(row // scale), int((row + 1) // scale) + 1)
        assert min(own) - seen.min() <= halo(network)
        assert seen.max() - max(own) <= halo(network)


@pytest.mark.parametrize("limit", [1, 3000])
def test_tiles_of_an_integer_network_equal_the_complete_map(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    network = to_integer_network(CategoricalHyperprior(8, 4).synthesis)
    z = torch.randn(2, 8, 37, 3, dtype=torch.float64)
    expected = network(z)
    sizes: list[int] = []

    def compute(tile: torch.Tensor) -> tuple[torch.Tensor]:
        sizes.append(tile.shape[2])
        return (network(tile),)

    monkeypatch.setattr(row_tiling, "TILE_ELEMENTS", limit)
    (tiled,) = in_row_tiles(compute, (z,), halo(network), 4)
    assert torch.equal(tiled, expected)
    assert len(sizes) > 1
    assert max(sizes) < 37


def test_tiles_start_at_multiples_of_the_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, 2, 1)).double()
    x = torch.randn(1, 2, 60, 8, dtype=torch.float64)
    monkeypatch.setattr(row_tiling, "TILE_ELEMENTS", 100)
    (tiled,) = in_row_tiles(lambda tile: (network(tile),), (x,), halo(network), 1 / 4)
    assert tiled.shape == (1, 2, 15, 2)
    assert torch.allclose(tiled, network(x), atol=1e-12)


@pytest.mark.parametrize("codec", ["categorical", "factorized"], indirect=True)
def test_row_tiles_do_not_change_a_file(codec: glc.Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 32 * codec.model.stride, 20
    image = fixed_image(*size)
    data = codec.compress(image, 100)
    symbols, decoded = codec.symbols(data), np.asarray(codec.decompress(data)).astype(int)
    monkeypatch.setattr(row_tiling, "TILE_ELEMENTS", 1)
    assert codec.symbols(data) == symbols
    assert codec.from_symbols(symbols, size, codec.rate_index(100)) == data
    assert np.abs(decoded - np.asarray(codec.decompress(data))).max() <= 1
    # The encoder side is floating point: roundings may differ.
    again = codec.symbols(codec.compress(image, 100))
    assert (again.y != symbols.y).float().mean() < 0.01
    assert (again.z != symbols.z).float().mean() < 0.01


def test_entropy_model_beyond_the_memory_limit_is_refused(variants: Variants) -> None:
    """Reading the symbols of a file runs the entropy model only."""
    file, codec = variants.weights("categorical"), variants.codec("categorical")
    data = codec.compress(fixed_image(70, 50))
    enough = glc.load(file, "cpu", memory=resident_memory() + 10**9)
    assert enough.symbols(data) == codec.symbols(data)
    with pytest.raises(MemoryLimitError, match=r"entropy model needs .* --memory"):
        glc.load(file, "cpu", memory=1).symbols(data)
