"""The map of what a file does not determine."""

import numpy as np
import pytest
import torch

import glc
from glc.codec.uncertainty import Uncertainty, cell_offsets, deviation
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import WITH_Y, Variants

FIRST = [-0.1964319656932414, 0.3487087496857769, -0.3438652219565269]


def test_deviation_is_the_root_mean_square_over_draws_and_channels() -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    others = [np.array([[[3, 0, 0], [0, 0, 0]]], np.uint8), np.array([[[0, 3, 3], [0, 0, 6]]], np.uint8)]
    # (9 / 3 + 18 / 3) / 2 = 4.5 and 36 / 3 / 2 = 6.
    assert deviation(image, others) == pytest.approx(np.sqrt([[4.5, 6]]))


def test_the_map_is_four_grey_levels_per_level_and_clipped() -> None:
    found = Uncertainty(None, np.array([[0, 1, 10.2, 64, 200]], np.float32)).map  # type: ignore[arg-type]
    assert np.asarray(found).tolist() == [[0, 4, 41, 255, 255]]


def test_offsets_are_uniform_in_the_cell_and_fixed() -> None:
    offsets = cell_offsets((1, 4, 50, 60), 1)
    assert offsets.shape == (1, 4, 50, 60)
    assert -0.5 <= offsets.min() < -0.499
    assert 0.499 < offsets.max() < 0.5
    assert offsets.mean() == pytest.approx(0, abs=0.01)
    assert offsets.var() == pytest.approx(1 / 12, rel=0.02)
    assert abs(np.corrcoef(offsets.ravel(), cell_offsets((1, 4, 50, 60), 2).ravel())[0, 1]) < 0.03
    assert offsets.ravel()[:3].tolist() == FIRST


@pytest.mark.parametrize("variant", WITH_Y)
def test_draws_are_points_of_the_cells_of_the_file(variants: Variants, variant: str) -> None:
    codec, image = variants.codec(variant), fixed_image(60, 120)
    data = codec.compress(image)
    decoded, _ = codec.entropy_decode([data])
    headers, payloads = codec._open([data], 1 << 20)
    size, rates = codec._latent_size(headers[0]), codec._rates([headers[0].rate_index])
    # With g_s left out, what is decoded are the points.
    inner = codec.latent_codec
    synthesis, inner.coder.synthesis = inner.coder.synthesis, _Points()
    try:
        centre, *points = inner.decode_cell(payloads, size, rates, 2)
    finally:
        inner.coder.synthesis = synthesis
    _, _, quant_step = inner._decode(payloads, size, rates)
    for point in points:
        assert not torch.equal(point, centre)
        inside = ((point - centre) / quant_step).abs()
        assert 0.49 < inside.max() <= 0.5 + 1e-4
    assert torch.equal(next(iter(inner.decode_cell(payloads, size, rates, 1))), decoded.latent_hat)


class _Points(torch.nn.Module):
    def forward(self, y_hat: torch.Tensor, rate_index: torch.Tensor) -> torch.Tensor:
        return y_hat


def test_uncertainty_comes_with_the_decoded_image_in_both_backends(variants: Variants) -> None:
    codec = variants.codec("categorical")
    data = codec.compress(fixed_image(60, 120))
    found = codec.uncertainty(data, draws=2)
    other = glc.load(variants.weights("categorical"), backend="onnx").uncertainty(data, draws=2)
    assert found.image == codec.decompress(data)
    assert found.deviation.shape == (60, 120)
    assert found.deviation.mean() > 0
    assert found.deviation == pytest.approx(other.deviation, abs=2)  # images differ by rounding
    assert np.array_equal(codec.uncertainty(data, draws=2).deviation, found.deviation)


def test_uncertainty_is_refused_without_cells_and_draws(variants: Variants) -> None:
    codec = variants.codec("indices_map")
    data = codec.compress(fixed_image(40, 40))
    with pytest.raises(ValueError, match="no quantisation cells"):
        codec.uncertainty(data)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        codec.uncertainty(data, draws=0)
    with pytest.raises(ValueError, match="no quantisation cells"):
        glc.load(variants.weights("indices_map"), backend="onnx").uncertainty(data)
