"""The size of a file matches the model's estimate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glc
from glc.codec import bitstream
from glc.codec.bitstream import RATE_ONE
from glc.codec.weights.export import make_tables
from glc.codec.weights.file import read_weights, save_weights
from glc.models.coder import TransformCoder
from glc.models.hyperprior import FactorizedHyperprior
from tests.codec.fixed_model import CHANNELS, SIZES, fixed_codec_weights, fixed_image
from tests.codec.variants import Variants

SLACK = bitstream.OVERHEAD + 4
"""Header and checksum; and the coder's last state, which is sent in whole words of 32 bits."""


def fitted(path: Path, amplitude: float, scale: float, **variant: Any) -> glc.Codec:
    """Return a codec whose Gaussians are about as wide as its symbols, as a trained one's are.

    With much narrower Gaussians the estimate, which has a likelihood floor, is below the size of any code.
    """
    made = read_weights(fixed_codec_weights(path, **variant))
    coder = made.model.coder
    assert isinstance(coder, TransformCoder)
    with torch.no_grad():
        for name, parameter in coder.analysis.named_parameters():
            if name.endswith("scaler.scale"):
                parameter.mul_(amplitude)
        for network, scales in (
            (coder.context.shared, slice(0, CHANNELS)),
            (coder.hyper.synthesis, slice(CHANNELS, 2 * CHANNELS)),
        ):
            last = dict(network.named_modules())[f"{len(network) - 1}.1.project"]
            last.weight.mul_(0.05)
            last.bias[scales] = scale
        if isinstance(coder.hyper, FactorizedHyperprior):  # likewise z: centred where its density is
            for parameter in coder.hyper.density.biases:
                parameter.zero_()
    tables = make_tables(made.model)
    save_weights(path, made.model.state_dict(), made.description, tables, made.rates)
    return glc.load(path, "cpu")


@pytest.mark.parametrize(
    ("hyper", "amplitude", "scale", "zeros"),
    [
        ("categorical", 1 / 16, 0.4, (0.8, 1)),
        ("factorized", 1 / 16, 0.4, (0.8, 1)),
        ("categorical", 2, 3, (0.1, 0.8)),
        ("factorized", 1, 3, (0.3, 0.8)),
    ],
)
def test_file_size_matches_the_estimate(
    tmp_path: Path, hyper: str, amplitude: float, scale: float, zeros: tuple[float, float]
) -> None:
    codec = fitted(tmp_path / "fitted.safetensors", amplitude, scale, hyper=hyper)
    image = fixed_image(512, 768)
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    for quality in (0, 50):
        data = codec.compress(image, quality)
        with torch.no_grad():
            estimate = codec.model(x, codec.rate_index(quality) / RATE_ONE).bits.item() / 8
        assert abs(len(data) - estimate) <= 0.01 * estimate + SLACK
        assert zeros[0] < (codec.symbols(data).y == 0).float().mean() < zeros[1]


def test_file_size_of_fixed_length_codes(variants: Variants) -> None:
    codec = variants.codec("indices_map")
    image = fixed_image(512, 768)
    for k, size in enumerate(SIZES):
        estimate = 64 * 96 * np.log2(size) / 8
        assert abs(len(codec.compress(image, codec.quality_of(k * RATE_ONE))) - estimate) <= SLACK
