"""Region of interest: which symbols are chosen, and the files."""

import math

import numpy as np
import pytest
import torch

import glc
from glc.codec.bitstream import RATE_ONE
from glc.codec.entropy.region import STRENGTH, Region
from glc.codec.entropy.tables import PRECISION, SYMBOL_LIMIT, gaussian_table
from glc.data.images import to_array
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import WITH_Y, Variants

TABLES = [gaussian_table(scale) for scale in (0.2, 0.6, 3.0)]


def test_symbols_have_the_least_cost_of_all_candidates() -> None:
    generator = np.random.default_rng(0)
    residual = generator.normal(0, 2, (1, 8, 3, 5))
    indexes = generator.integers(0, len(TABLES), residual.shape)
    weights = generator.random((3, 5))
    chosen = Region(weights, TABLES).choose(residual, indexes)
    assert chosen.dtype == np.int32
    for place in np.ndindex(residual.shape):
        table, r = TABLES[indexes[place]], residual[place]

        def cost(s: int, table=table, r=r, w=weights[place[2:]]) -> float:
            inside = table.low <= s <= table.high
            f = table.frequencies[s - table.low] if inside else table.frequencies[-1]
            bits = PRECISION - math.log2(f) + (0 if inside else 5 + math.log2(abs(s) - table.high))
            return (r - s) ** 2 + STRENGTH * (1 - w) * bits

        rounded = round(r)
        candidates = {rounded, rounded - int(np.sign(rounded)), 0}
        assert cost(int(chosen[place])) == min(map(cost, candidates)), place


def test_full_weight_and_huge_symbols_are_rounded() -> None:
    residual = np.array([0.4, 0.6, -1.5, 2.5, 1e9, -1e9]).reshape(1, 1, 1, 6)
    indexes = np.zeros(residual.shape, np.int32)
    expected = [0, 1, -2, 2, SYMBOL_LIMIT, -SYMBOL_LIMIT]
    assert Region(np.ones((1, 6)), TABLES).choose(residual, indexes).ravel().tolist() == expected
    assert Region(np.zeros((1, 6)), TABLES).choose(residual, indexes).ravel().tolist()[4:] == expected[4:]


@pytest.mark.parametrize("variant", WITH_Y)
def test_files_of_a_region_are_ordinary_and_smaller(variants: Variants, variant: str) -> None:
    codec, image = variants.codec(variant), fixed_image(128, 192)
    mask = np.zeros((128, 192), bool)
    mask[:, :64] = True
    plain, smaller = codec.compress(image), codec.compress(image, roi=mask)
    assert len(smaller) < len(plain)
    assert codec.compress(image, roi=np.ones_like(mask)) == plain
    before, after = (np.asarray(codec.symbols(data).y) for data in (plain, smaller))
    columns = before.shape[-1] // 3
    # Context from outside of the region changes symbols in it: their number, but not their kind.
    changed = [
        np.count_nonzero(np.abs(after[..., part]) < np.abs(before[..., part]))
        for part in (slice(columns), slice(columns, None))
    ]
    assert changed[1] > 4 * changed[0]
    assert np.abs(after).sum() < np.abs(before).sum()


def test_the_region_gains_quality_at_a_target(variants: Variants) -> None:
    codec, image = variants.codec("categorical"), fixed_image(128, 192)
    mask = np.zeros((128, 192), bool)
    mask[:64] = True
    target = (len(codec.compress(image, 0)) + len(codec.compress(image, 100))) // 2
    rates = []
    for roi in (None, mask):
        data = codec.compress(image, target_size=target, roi=roi)
        assert 0.97 * target <= len(data) <= target
        rates.append(glc.codec.bitstream.unpack(data)[0].rate_index)
    assert rates[1] > rates[0]


def test_both_backends_choose_the_same_symbols(variants: Variants) -> None:
    codec = variants.codec("categorical")
    other = glc.load(variants.weights("categorical"), backend="onnx")
    latent = np.asarray(codec.encode_latent([codec._to_input(fixed_image(64, 128))]))
    weights = np.linspace(0, 1, latent.shape[-1])[None].repeat(latent.shape[-2], 0)
    _, symbols = other.entropy_encode(latent, [(64, 128)], RATE_ONE, weights)
    _, expected = codec.entropy_encode(torch.from_numpy(latent), [(64, 128)], RATE_ONE, weights)
    assert np.mean(np.asarray(symbols.y) != np.asarray(expected.y)) < 1e-3  # g_a is floating point


def test_masks_that_do_not_fit_are_refused(variants: Variants) -> None:
    image = fixed_image(30, 50)
    assert to_array(image).shape == (1, 3, 30, 50)
    with pytest.raises(glc.ImageError, match=r"the mask: 30 x 50 pixels, the image 50 x 30"):
        variants.codec("categorical").compress(image, roi=np.ones((50, 30), bool))
    with pytest.raises(ValueError, match="spends the same bits everywhere"):
        variants.codec("indices_map").compress(image, roi=np.ones((30, 50), bool))
