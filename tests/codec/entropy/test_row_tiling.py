"""Large maps in slabs of rows: the same numbers where arithmetic is exact."""

from pathlib import Path

import pytest
import torch
from torch import nn

import glc
from glc.codec.entropy import row_tiling
from glc.codec.entropy.integer_nets import to_integer_network
from glc.codec.entropy.row_tiling import halo, in_row_tiles
from glc.codec.runtime.memory import resident_memory
from glc.errors import MemoryLimitError
from glc.models.hyperprior import CategoricalHyperprior
from tests.codec.fixed_model import fixed_codec_weights, fixed_image


def test_reach_is_what_a_row_sees() -> None:
    torch.manual_seed(0)
    hyper = CategoricalHyperprior(8, 4)
    for network, scale, side in ((hyper.analysis, 1 / 4, 64), (hyper.synthesis, 4, 24)):
        x = torch.randn(1, 8, side, 4, requires_grad=True)
        out = network(x)
        assert out.shape[2] == side * scale
        seen = torch.zeros(side, dtype=torch.bool)
        row = int(side * scale) // 2
        out[:, :, row].abs().sum().backward()
        assert x.grad is not None
        seen = (x.grad != 0).any(3).any(1)[0].nonzero().flatten()
        own = range(int(row // scale), int((row + 1) // scale) + 1)
        assert min(own) - seen.min() <= halo(network)
        assert seen.max() - max(own) <= halo(network)


@pytest.mark.parametrize("limit", [1, 3000])
def test_slabs_of_an_exact_network_are_the_whole(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    network = to_integer_network(CategoricalHyperprior(8, 4).synthesis)
    z = torch.randn(2, 8, 37, 3, dtype=torch.float64)
    whole = network(z)
    sizes: list[int] = []

    def compute(part: torch.Tensor) -> tuple[torch.Tensor]:
        sizes.append(part.shape[2])
        return (network(part),)

    monkeypatch.setattr(row_tiling, "TILE_ELEMENTS", limit)
    (pieces,) = in_row_tiles(compute, (z,), halo(network), 4)
    assert torch.equal(pieces, whole)
    assert len(sizes) > 1
    assert max(sizes) < 37


def test_slabs_start_where_strides_do(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, 2, 1)).double()
    x = torch.randn(1, 2, 60, 8, dtype=torch.float64)
    monkeypatch.setattr(row_tiling, "TILE_ELEMENTS", 100)
    (pieces,) = in_row_tiles(lambda part: (network(part),), (x,), halo(network), 1 / 4)
    assert pieces.shape == (1, 2, 15, 2)
    assert torch.allclose(pieces, network(x), atol=1e-12)


@pytest.mark.parametrize("hyper", ["categorical", "factorized"])
def test_a_file_is_read_and_written_in_row_tiles_as_it_is_whole(
    hyper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = glc.load(fixed_codec_weights(tmp_path / "codec.safetensors", hyper=hyper), "cpu")
    image = fixed_image(32 * codec.model.stride, 20)
    data = codec.compress(image, 100)
    symbols, drawn = codec.symbols(data), codec.decompress(data)
    monkeypatch.setattr(row_tiling, "TILE_ELEMENTS", 1)
    assert codec.symbols(data) == symbols
    assert codec.from_symbols(symbols, (32 * codec.model.stride, 20), codec.rate_of(100)) == data
    difference = torch.tensor(list(codec.decompress(data).tobytes())).float() - torch.tensor(
        list(drawn.tobytes())
    )
    assert difference.abs().max() <= 1
    # E's side is floating point: a rounding may fall the other way.
    again = codec.symbols(codec.compress(image, 100))
    assert (again.y != symbols.y).float().mean() < 0.01
    assert (again.z != symbols.z).float().mean() < 0.01


def test_a_file_whose_maps_do_not_fit_is_refused(tmp_path: Path) -> None:
    """The symbols of a file need neither E nor D: it is the entropy model that says so."""
    file = fixed_codec_weights(tmp_path / "codec.safetensors")
    data = glc.load(file, "cpu").compress(fixed_image(70, 50))
    for memory, fits in ((resident_memory() + 10**9, True), (1, False)):
        codec = glc.load(file, "cpu", memory=memory)
        if fits:
            assert codec.symbols(data).y is not None
            continue
        with pytest.raises(MemoryLimitError, match=r"entropy model needs .* --memory"):
            codec.symbols(data)
