"""E and D in row tiles equal the modules."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from glc.codec.runtime import row_tiles, tiled_networks
from glc.codec.runtime.row_tiles import Source
from glc.codec.runtime.tiled_layers import make_tiled_layers
from glc.codec.runtime.tiled_networks import TiledDecoder, TiledEncoder
from glc.errors import MemoryLimitError
from glc.models.autoencoder import Decoder, Encoder

SHAPES: dict[str, dict[str, Any]] = {
    "group": {"norm": "group", "multipliers": (1, 2, 2), "stem": 1, "level_attention": True},
    "pixel": {"norm": "pixel", "multipliers": (1, 2, 2), "stem": 2, "level_attention": False},
    "bounded": {"norm": "pixel", "multipliers": (1, 2), "stem": 2, "level_attention": False},
    "none": {"norm": "none", "multipliers": (1, 1), "stem": 1, "out_activation": False, "projection": False},
    "fine": {"norm": "pixel", "multipliers": (1, 2), "stem": 4, "level_attention": False},
}
BOUNDED = {"bounded": {"bounded": True}}
FINE = {"fine": {"fine_blocks": 2, "fine_channels": 16}}
"""Arguments of the encoder alone, and of the decoder alone."""


def networks(kind: str, channels: int = 16) -> tuple[Encoder, Decoder]:
    torch.manual_seed(3)
    given = {"latent_channels": 8, "channels": channels, "num_blocks": 1, "window": 4, **SHAPES[kind]}
    made = Encoder(**given, **BOUNDED.get(kind, {})).eval(), Decoder(**given, **FINE.get(kind, {})).eval()
    for made_network in made:
        for name, parameter in made_network.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter, 0.5, 0.5)
    return made


def encode(encoder: TiledEncoder, x: Tensor, limit: int | None = None) -> Tensor:
    return encoder(Source(x.shape[2], lambda a, b: x[:, :, a:b]), x.shape[3], limit)


def decode(decoder: TiledDecoder, latent: Tensor, factor: int, limit: int | None = None) -> Tensor:
    x_hat = torch.full((1, 3, latent.shape[2] * factor, latent.shape[3] * factor), math.nan)

    def write(row: int, column: int, part: Tensor) -> None:
        to = x_hat[:, :, row : row + part.shape[2], column : column + part.shape[3]]
        assert to.isnan().all(), "each pixel is written once"
        to[:] = part

    decoder(latent, write, limit)
    return x_hat


def psnr(a: Tensor, b: Tensor) -> float:
    return 10 * math.log10(float((b.max() - b.min()).square() / (a - b).square().mean().clamp_min(1e-30)))


@torch.inference_mode()
@pytest.mark.parametrize("kind", SHAPES)
def test_tiles_of_any_height_equal_the_module(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = networks(kind)
    x = torch.rand(1, 3, 72, 56) * 2 - 1
    latent = encoder(x)
    x_hat = decoder(latent)
    for elements in (500, 4000, 1 << 20):
        monkeypatch.setattr(row_tiles, "TILE_ELEMENTS", elements)
        found = encode(TiledEncoder(encoder, torch.float32), x)
        torch.testing.assert_close(found, latent, rtol=1e-4, atol=1e-4)
        decoded = decode(TiledDecoder(decoder, torch.float32), latent, decoder.downsampling)
        torch.testing.assert_close(decoded, x_hat, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_last_convolution_of_many_channels_runs_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"latent_channels": 32, "channels": 32, "num_blocks": 1, "multipliers": (1, 2)}
    decoder = Decoder(**given, norm="pixel", stem=4, level_attention=False).eval()
    latent = torch.randn(1, 32, 20, 12)
    for elements in (20000, 30000):
        monkeypatch.setattr(row_tiles, "TILE_ELEMENTS", elements)
        decoded = decode(TiledDecoder(decoder, torch.float32), latent, decoder.downsampling)
        torch.testing.assert_close(decoded, decoder(latent), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_winograd_error_of_wide_layers_is_90_db_below_the_signal() -> None:
    encoder, decoder = networks("group", channels=96)
    x = torch.rand(1, 3, 44, 36) * 2 - 1
    encoder64, decoder64 = copy.deepcopy(encoder).double(), copy.deepcopy(decoder).double()
    latent = encoder64(x.double())
    assert psnr(encode(TiledEncoder(encoder, torch.float32), x), latent) > 90
    found = decode(TiledDecoder(decoder, torch.float32), latent.float(), decoder.downsampling)
    assert psnr(found, decoder64(latent.double())) > 90


@torch.inference_mode()
@pytest.mark.parametrize("channels", [16, 48], ids=["narrow", "wide enough for the C kernel"])
@pytest.mark.parametrize("kind", SHAPES)
def test_bfloat16_error_is_bounded(kind: str, channels: int) -> None:
    # The encoder "fine" of 48 channels begins with a float32 convolution for the kernel, to a bfloat16 map.
    encoder, decoder = networks(kind, channels)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    latent = encoder(x)
    assert psnr(encode(TiledEncoder(encoder, torch.bfloat16), x), latent) > 35
    decoded = decode(TiledDecoder(decoder, torch.bfloat16), latent, decoder.downsampling)
    assert psnr(decoded, decoder(latent)) > 35


@torch.inference_mode()
def test_decoder_runs_in_float32_before_the_first_upsampling() -> None:
    _, decoder = networks("group")
    latent = torch.randn(1, 8, 6, 6)
    expected, seen = decoder(latent), {}
    for name, low in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        tiled = TiledDecoder(decoder, torch.bfloat16)
        upsampling = next(i for i, layer in enumerate(tiled.rest) if layer.scale > 1)
        assert {layer.dtype for layer in tiled.rest[:upsampling]} == {torch.float32}
        assert {layer.dtype for layer in tiled.rest[upsampling:]} == {torch.bfloat16}
        if low is torch.bfloat16:  # all in bfloat16, for comparison
            tiled.rest[:upsampling] = make_tiled_layers(list(decoder.blocks)[:upsampling], low)
            tiled.dtype = low
        seen[name] = psnr(decode(tiled, latent, decoder.downsampling), expected)
    assert seen["float32"] > seen["bfloat16"] + 1


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["pixel", "none", "fine"])
def test_tiles_with_halo_equal_the_complete_map(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = networks(kind)
    x = torch.rand(1, 3, 320, 160) * 2 - 1
    tiled, tiled_decoder = TiledEncoder(encoder, torch.float32), TiledDecoder(decoder, torch.float32)
    latent = encode(tiled, x)
    x_hat = decode(tiled_decoder, latent, decoder.downsampling)
    for shape in ((3, 999), (7, 3), (999, 4)):
        monkeypatch.setattr(tiled_networks, "_tile_shape", lambda *_, shape=shape: shape)
        torch.testing.assert_close(encode(tiled, x), latent, rtol=1e-5, atol=1e-5)
        decoded = decode(tiled_decoder, latent, decoder.downsampling)
        torch.testing.assert_close(decoded, x_hat, rtol=1e-5, atol=1e-5)


def test_tiles_follow_the_memory_limit() -> None:
    fixed, shape = tiled_networks.working_memory(), tiled_networks._tile_shape
    for limit in (None, fixed + 1000):
        assert shape(1000, (50, 80), 4, limit, "it", 8) == (50, 80)
    assert shape(1000, (50, 80), 4, fixed + 400, "it") == (20 - 2 * 4, 80)
    # Complete rows: 20 for 12, 1.7 times the work. Two halves with halo: 33 for 25, of 48 columns for 40.
    assert shape(1000, (50, 80), 4, fixed + 400, "it", 2) == (33 - 2 * 4, 40)
    # One row with its halo does not fit; in four parts it does.
    assert shape(1000, (50, 80), 4, fixed + 170, "it", 4) == (24 - 2 * 4, 20)
    with pytest.raises(MemoryLimitError):
        shape(1000, (50, 80), 4, fixed + 170, "it")


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["group", "pixel"])
def test_too_low_memory_limit_fails_before_computing(kind: str) -> None:
    encoder, decoder = networks(kind)
    x = torch.zeros(1, 3, 64, 64)
    with pytest.raises(MemoryLimitError, match=r"the encoder needs .* --memory"):
        encode(TiledEncoder(encoder, torch.float32), x, 1000)
    with pytest.raises(MemoryLimitError, match=r"the decoder needs .* --memory"):
        decode(TiledDecoder(decoder, torch.float32), torch.zeros(1, 8, 8, 8), decoder.downsampling, 1000)
