"""Quality, and files of a given size."""

import warnings
from itertools import pairwise

import numpy as np
import pytest

import glc
from glc.codec import bitstream
from glc.codec.bitstream import RATE_ONE
from glc.codec.runtime.networks import ImageNetworks
from glc.codec.runtime.resources import choose_precision
from tests.codec.fixed_model import SIZES, fixed_image
from tests.codec.variants import WITH_Y, Variants


@pytest.mark.parametrize("codec", WITH_Y, indirect=True)
def test_quality_is_continuous(codec: glc.Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rounded to bfloat16, images of a random decoder differ by more than one unit of the rate changes.
    plain = ImageNetworks(codec.model, codec.device, choose_precision("float32", codec.device))
    monkeypatch.setattr(codec, "networks", plain)
    top = (codec.model.num_rates - 1) * RATE_ONE
    rates = [codec.rate_index(quality) for quality in np.linspace(0, 100, 3001)]
    assert (rates[0], rates[1500], rates[-1]) == (0, top // 2, top)
    assert all(0 < after - before <= top / 3000 + 1 for before, after in pairwise(rates))
    for rate_index in (0, 1, RATE_ONE, RATE_ONE + 1, top - 1, top):
        assert codec.rate_index(codec.quality_of(rate_index)) == rate_index
    # The same integers one unit of the rate apart, across a trained point too, are nearly the same image.
    symbols = codec.symbols(codec.compress(fixed_image(64, 64), 33))

    def draw(rate_index: int) -> np.ndarray:
        return np.asarray(codec.decompress(codec.from_symbols(symbols, (64, 64), rate_index))).astype(int)

    for rate_index in (0, 1000, RATE_ONE - 1, RATE_ONE, top - 1):
        assert np.abs(draw(rate_index) - draw(rate_index + 1)).max() <= 2
    assert np.abs(draw(0) - draw(RATE_ONE)).max() > 10


def test_indices_map_coding_has_integer_rate_points_only(variants: Variants) -> None:
    codec = variants.codec("indices_map")
    found = [codec.rate_index(quality) for quality in range(101)]
    assert set(found) == {k * RATE_ONE for k in range(len(SIZES))}
    assert found == sorted(found)


@pytest.mark.parametrize("codec", WITH_Y, indirect=True)
def test_a_target_is_reached_within_three_percent(codec: glc.Codec) -> None:
    image = fixed_image(128, 192)
    smallest, largest = (len(codec.compress(image, quality)) for quality in (0, 100))
    assert largest > 1.2 * smallest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for target in np.geomspace(smallest, largest, 6).astype(int).tolist():
            data = codec.compress(image, target_size=target)
            assert 0.97 * target <= len(data) <= target
            bpp = (target + 0.001) * 8 / (128 * 192)
            assert 0.97 * bpp <= len(codec.compress(image, target_bpp=bpp)) * 8 / (128 * 192) <= bpp
    # It is an ordinary file of some quality.
    rate_index = bitstream.unpack(data)[0].rate_index
    assert codec.compress(image, codec.quality_of(rate_index)) == data


def test_unreachable_targets_raise_or_warn(codec: glc.Codec) -> None:
    image = fixed_image(128, 192)
    smallest, largest = (codec.compress(image, quality) for quality in (0, 100))
    # With random weights of a gate, some quality above 0 may have a smaller file: far less fits none.
    with pytest.raises(glc.TargetError, match=rf"the smallest file has {len(smallest)} bytes .*quality 0"):
        codec.compress(image, target_size=len(smallest) // 2)
    with pytest.raises(glc.TargetError, match="the smallest file has"):
        codec.compress(image, target_bpp=1e-9)
    assert len(codec.compress(image, target_size=len(smallest))) <= len(smallest)
    with pytest.warns(glc.TargetWarning, match=rf"{len(largest)} bytes .*quality 100 needs no more"):
        assert codec.compress(image, target_size=2 * len(largest)) == largest
    with pytest.warns(glc.TargetWarning):
        assert codec.compress(image, target_bpp=100) == largest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"target_bpp": value}, "target_bpp must be positive") for value in (0, -1, float("nan"))),
        *(({"target_bpp": value}, "at most 10,000") for value in (1e308, float("inf"))),
        ({"target_bpp": 1, "target_size": 100}, "not both"),
        *(({"quality": q}, r"quality must lie in \[0, 100\]") for q in (-0.001, 100.001, np.nan, np.inf)),
    ],
)
def test_options_out_of_range_are_refused(
    variants: Variants, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        variants.codec("categorical").compress(fixed_image(8, 8), **options)


def test_target_between_two_possible_sizes_warns(variants: Variants) -> None:
    codec = variants.codec("indices_map")
    image = fixed_image(128, 192)
    second, third = (codec.compress(image, codec.quality_of(k * RATE_ONE)) for k in (1, 2))
    with pytest.warns(glc.TargetWarning, match="the next rate point exceeds it"):
        assert codec.compress(image, target_size=len(third) - 1) == second
