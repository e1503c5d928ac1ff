"""The walk over large latents: the same files and integers as the context model's own walk."""

import numpy as np
import pytest
import torch

from glc.codec.entropy import fixed_point_walk, latent_coding, row_tiling
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import WITH_Y, Variants

SIZE = (250, 150)


@pytest.mark.parametrize("variant", WITH_Y)
@pytest.mark.parametrize("limit", [1, 1 << 23])
def test_files_and_integers_are_those_of_the_ordinary_walk(
    variants: Variants, variant: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, image = variants.codec(variant), fixed_image(*SIZE)
    mask = np.linspace(0, 1, SIZE[1], dtype=np.float32)[None].repeat(SIZE[0], 0)
    plain, region = codec.compress(image, 100), codec.compress(image, 100, roi=mask)
    assert plain != region
    decoded, _ = codec.entropy_decode([plain])
    uncertainty = codec.uncertainty(plain, draws=1)
    walks = []
    inner = latent_coding.FixedPointWalk
    monkeypatch.setattr(latent_coding, "FixedPointWalk", lambda *args: walks.append(1) or inner(*args))
    monkeypatch.setattr(latent_coding, "LARGE", 0)
    for module in (row_tiling, fixed_point_walk):
        monkeypatch.setattr(module, "TILE_ELEMENTS", limit)
    assert codec.compress(image, 100) == plain
    assert codec.compress(image, 100, roi=mask) == region
    found, _ = codec.entropy_decode([plain])
    assert found.symbols == decoded.symbols
    assert torch.allclose(found.latent_hat, decoded.latent_hat, atol=1e-5)  # g_s in tiles
    assert codec.from_symbols(decoded.symbols, SIZE, codec.rate_index(100)) == plain
    assert codec.uncertainty(plain, draws=1).deviation == pytest.approx(uncertainty.deviation, abs=2)
    assert len(walks) == (0 if variant == "gate" else 5)  # a gate needs the ordinary walk


def test_maps_hold_the_extremes_of_integer_networks() -> None:
    values = torch.tensor([2.0**18, -(2.0**18), 2.0**-12, -(2.0**-12), 0.0, 1.5], dtype=torch.float64)
    assert torch.equal(fixed_point_walk._value(fixed_point_walk._fixed(values)), values)


def test_large_latents_need_half_the_memory(variants: Variants) -> None:
    inner = variants.codec("categorical").latent_codec
    small, large = inner.memory(1, (64, 64)), inner.memory(1, (4096, 4096))
    assert large < small * 64 * 64 / 2
