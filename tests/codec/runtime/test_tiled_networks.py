"""E and D in bands give what the modules give, at a fraction of their memory."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from glc.codec.runtime import row_tiles, tiled_networks
from glc.codec.runtime.row_tiles import Source
from glc.codec.runtime.tiled_layers import make_steps
from glc.codec.runtime.tiled_networks import TiledDecoder, TiledEncoder
from glc.errors import MemoryLimitError
from glc.models.autoencoder import Decoder, Encoder

SHAPES: dict[str, dict[str, Any]] = {
    "group": {"norm": "group", "multipliers": (1, 2, 2), "stem": 1, "level_attention": True},
    "pixel": {"norm": "pixel", "multipliers": (1, 2, 2), "stem": 2, "level_attention": False},
    "none": {"norm": "none", "multipliers": (1, 1), "stem": 1, "out_activation": False, "projection": False},
    "fine": {"norm": "pixel", "multipliers": (1, 2), "stem": 4, "level_attention": False},
}
FINE = {"fine": {"fine_blocks": 2, "fine_channels": 16}}
"""What the decoder alone is given."""


def networks(kind: str, channels: int = 16) -> tuple[Encoder, Decoder]:
    torch.manual_seed(3)
    given = {"latent_channels": 8, "channels": channels, "num_blocks": 1, "window": 4, **SHAPES[kind]}
    made = Encoder(**given).eval(), Decoder(**given, **FINE.get(kind, {})).eval()
    for made_network in made:
        for name, parameter in made_network.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter, 0.5, 0.5)
    return made


def encode(encoder: TiledEncoder, x: Tensor, limit: int | None = None) -> Tensor:
    return encoder(Source(x.shape[2], lambda a, b: x[:, :, a:b]), x.shape[3], limit)


def draw(decoder: TiledDecoder, latent: Tensor, factor: int, limit: int | None = None) -> Tensor:
    x_hat = torch.full((1, 3, latent.shape[2] * factor, latent.shape[3] * factor), math.nan)

    def write(row: int, rows: Tensor) -> None:
        assert x_hat[:, :, row : row + rows.shape[2]].isnan().all(), "each row is written once"
        x_hat[:, :, row : row + rows.shape[2]] = rows

    decoder(latent, write, limit)
    return x_hat


def psnr(a: Tensor, b: Tensor) -> float:
    return 10 * math.log10(float((b.max() - b.min()).square() / (a - b).square().mean().clamp_min(1e-30)))


@torch.inference_mode()
@pytest.mark.parametrize("kind", SHAPES)
def test_bands_of_any_height_are_the_whole_network(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = networks(kind)
    x = torch.rand(1, 3, 72, 56) * 2 - 1
    latent = encoder(x)
    x_hat = decoder(latent)
    for elements in (500, 4000, 1 << 20):
        monkeypatch.setattr(row_tiles, "TILE_ELEMENTS", elements)
        found = encode(TiledEncoder(encoder, torch.float32), x)
        torch.testing.assert_close(found, latent, rtol=1e-4, atol=1e-4)
        drawn = draw(TiledDecoder(decoder, torch.float32), latent, decoder.downsampling)
        torch.testing.assert_close(drawn, x_hat, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_last_convolution_of_many_channels_is_drawn_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    given = {"latent_channels": 32, "channels": 32, "num_blocks": 1, "multipliers": (1, 2)}
    decoder = Decoder(**given, norm="pixel", stem=4, level_attention=False).eval()
    latent = torch.randn(1, 32, 20, 12)
    for elements in (20000, 30000):
        monkeypatch.setattr(row_tiles, "TILE_ELEMENTS", elements)
        drawn = draw(TiledDecoder(decoder, torch.float32), latent, decoder.downsampling)
        torch.testing.assert_close(drawn, decoder(latent), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_wide_layers_lose_nothing_that_counts_to_winograd() -> None:
    encoder, decoder = networks("group", channels=96)
    x = torch.rand(1, 3, 44, 36) * 2 - 1
    exact, precise = copy.deepcopy(encoder).double(), copy.deepcopy(decoder).double()
    latent = exact(x.double())
    assert psnr(encode(TiledEncoder(encoder, torch.float32), x), latent) > 90
    found = draw(TiledDecoder(decoder, torch.float32), latent.float(), decoder.downsampling)
    assert psnr(found, precise(latent.double())) > 90


@torch.inference_mode()
@pytest.mark.parametrize("kind", SHAPES)
def test_bfloat16_stays_near(kind: str) -> None:
    encoder, decoder = networks(kind)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    latent = encoder(x)
    assert psnr(encode(TiledEncoder(encoder, torch.bfloat16), x), latent) > 35
    assert (
        psnr(draw(TiledDecoder(decoder, torch.bfloat16), latent, decoder.downsampling), decoder(latent)) > 35
    )


@torch.inference_mode()
def test_below_the_first_doubling_a_decoder_is_in_float32() -> None:
    _, decoder = networks("group")
    latent = torch.randn(1, 8, 6, 6)
    exact, seen = decoder(latent), {}
    for name, low in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        banded = TiledDecoder(decoder, torch.bfloat16)
        doubling = next(i for i, step in enumerate(banded.rest) if step.scale > 1)
        assert {step.dtype for step in banded.rest[:doubling]} == {torch.float32}
        assert {step.dtype for step in banded.rest[doubling:]} == {torch.bfloat16}
        if low is torch.bfloat16:  # as it would be
            banded.rest[:doubling] = make_steps(list(decoder.blocks)[:doubling], low)
            banded.dtype = low
        seen[name] = psnr(draw(banded, latent, decoder.downsampling), exact)
    assert seen["float32"] > seen["bfloat16"] + 1


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["pixel", "none", "fine"])
def test_slabs_have_no_seams(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = networks(kind)
    x = torch.rand(1, 3, 320, 16) * 2 - 1
    banded, drawing = TiledEncoder(encoder, torch.float32), TiledDecoder(decoder, torch.float32)
    latent = encode(banded, x)
    x_hat = draw(drawing, latent, decoder.downsampling)
    for rows in (3, 7):
        monkeypatch.setattr(tiled_networks, "_tile_rows", lambda *_, rows=rows: rows)
        torch.testing.assert_close(encode(banded, x), latent, rtol=1e-5, atol=1e-5)
        drawn = draw(drawing, latent, decoder.downsampling)
        torch.testing.assert_close(drawn, x_hat, rtol=1e-5, atol=1e-5)


def test_slabs_are_as_large_as_memory_allows() -> None:
    besides = tiled_networks.working_memory()
    assert tiled_networks._tile_rows(1000, 50, 4, besides + 1000, "it") == 50
    assert tiled_networks._tile_rows(1000, 50, 4, besides + 400, "it") == 20 - 2 * 4
    assert tiled_networks._tile_rows(1000, 50, 4, None, "it") == 50


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["group", "pixel"])
def test_too_little_memory_is_an_error_before_any_work(kind: str) -> None:
    encoder, decoder = networks(kind)
    x = torch.zeros(1, 3, 64, 64)
    with pytest.raises(MemoryLimitError, match=r"the encoder needs .* --memory"):
        encode(TiledEncoder(encoder, torch.float32), x, 1000)
    with pytest.raises(MemoryLimitError, match=r"the decoder needs .* --memory"):
        draw(TiledDecoder(decoder, torch.float32), torch.zeros(1, 8, 8, 8), decoder.downsampling, 1000)
