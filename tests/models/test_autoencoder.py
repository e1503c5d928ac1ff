from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from glc.layers.blocks import WindowAttention
from glc.models.autoencoder import Decoder, Encoder, VQAutoencoder
from glc.models.quantizer import FiniteScalarQuantizer, VectorQuantizer

Part = Callable[..., Encoder | Decoder]


@pytest.mark.parametrize(("stem", "multipliers", "f"), [(1, (1, 2), 2), (1, (1, 1, 2), 4), (4, (1, 2), 8)])
@pytest.mark.parametrize("options", [{}, {"out_activation": False, "projection": False}])
def test_encoder_and_decoder_scale_sides_by_f(
    stem: int, multipliers: tuple[int, ...], f: int, options: dict[str, Any]
) -> None:
    shared = {"channels": 8, "multipliers": multipliers, "num_blocks": 1, "stem": stem, **options}
    encoder, decoder = Encoder(5, **shared), Decoder(5, **shared)
    assert encoder.downsampling == decoder.downsampling == f
    latent = encoder(torch.randn(2, 3, 3 * f, 5 * f))
    assert latent.shape == (2, 5, 3, 5)
    assert decoder(latent).shape == (2, 3, 3 * f, 5 * f)


@pytest.mark.parametrize("stem", [1, 2])
def test_last_layer_produces_the_image(stem: int) -> None:
    decoder = Decoder(4, 8, (1, 2), num_blocks=1, stem=stem).eval()
    latent = torch.randn(1, 4, 3, 3)
    assert decoder.last_layer.shape == (3 * stem**2, 8, 3, 3)
    biases = [p for p in decoder.parameters() if p.shape == (3 * stem**2,)]
    with torch.no_grad():
        biases[-1].zero_()
        before = decoder(latent)
        decoder.last_layer.mul_(2)
        torch.testing.assert_close(decoder(latent), 2 * before)


@pytest.mark.parametrize("stem", [2, 4, 8])
def test_inflated_decoder_computes_the_same(stem: int) -> None:
    torch.manual_seed(2)
    shape = {"channels": 8, "multipliers": (1, 2), "num_blocks": 1, "stem": stem, "norm": "pixel"}
    coarse = Decoder(4, **shape).eval()
    fine = Decoder(4, **shape, fine_blocks=2, fine_channels=16).eval()
    latent = torch.randn(2, 4, 3, 5)
    x_hat = coarse(latent)
    assert fine.downsampling == coarse.downsampling
    assert not torch.allclose(fine(latent), x_hat, atol=0.1)
    fine.load_state_dict(fine.inflate(coarse.state_dict()))
    torch.testing.assert_close(fine(latent), x_hat)
    # Nothing that it has grown is cut off: the second step's gradient reaches every weight.
    for _ in range(2):
        fine.zero_grad()
        (fine(latent) - 1).square().mean().backward()
        with torch.no_grad():
            for parameter in fine.parameters():
                parameter -= 0.1 * parameter.grad
    assert all(parameter.grad.abs().max() > 0 for parameter in fine.parameters())


@pytest.mark.parametrize("wrong", [{"stem": 1}, {"stem": 4, "fine_channels": 11}])
def test_fine_blocks_need_an_even_stem_and_12_channels(wrong: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match="fine_blocks=1: needs an even stem and fine_channels of at least 12"
    ):
        Decoder(4, 8, (1, 2), fine_blocks=1, **wrong)


@pytest.mark.parametrize(("level_attention", "count"), [(True, 3), (False, 1)])
def test_level_attention_follows_each_block_of_the_last_level(level_attention: bool, count: int) -> None:
    for part in (Encoder, Decoder):
        module = part(4, 8, (1, 2), num_blocks=2, level_attention=level_attention)
        assert sum(isinstance(m, WindowAttention) for m in module.modules()) == count


@pytest.mark.parametrize("part", [Encoder, Decoder])
def test_checkpointing_recomputes_and_changes_no_gradient(part: Part) -> None:
    x = torch.randn(2, 3, 8, 8) if part is Encoder else torch.randn(2, 4, 4, 4)
    gradients, runs = [], []
    for checkpointing in (False, True):
        torch.manual_seed(2)
        module = part(4, 8, (1, 2), num_blocks=1, checkpointing=checkpointing).train()
        calls: list[int] = []
        module.blocks[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        inputs = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(module(inputs).square().sum(), [inputs, *module.parameters()]))
        runs.append(len(calls))
    torch.testing.assert_close(*gradients)
    assert runs == [1, 2]


def test_output_is_full_precision_under_autocast() -> None:
    encoder, decoder = Encoder(4, 8, (1, 2), num_blocks=1), Decoder(4, 8, (1, 2), num_blocks=1)
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        latent = encoder(x)
        x_hat = decoder(latent)
    assert latent.dtype == x_hat.dtype == torch.float32
    torch.testing.assert_close(latent, encoder(x), atol=0.1, rtol=0.1)


def parts(width: int = 4) -> tuple[Encoder, Decoder, VectorQuantizer]:
    quantizer = VectorQuantizer(16, width)
    nn.init.normal_(quantizer.embedding)
    return Encoder(width, 8, (1, 2), 1), Decoder(width, 8, (1, 2), 1), quantizer


def test_autoencoder_decodes_codewords_with_straight_through_gradient() -> None:
    encoder, decoder, quantizer = parts()
    model = VQAutoencoder(encoder, decoder, quantizer).eval()
    x = torch.randn(2, 3, 8, 12)
    out = model(x)
    codes = quantizer.decode(quantizer.encode(encoder(x)))
    torch.testing.assert_close(out.latent, encoder(x))
    torch.testing.assert_close(out.x_hat, decoder(codes), atol=1e-4, rtol=1e-4)
    out.x_hat.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert quantizer.embedding.grad is None


def test_unquantized_images_bypass_the_quantizer() -> None:
    torch.manual_seed(0)
    model = VQAutoencoder(*parts()).eval()
    x = torch.randn(3, 3, 8, 12)
    out = model(x, torch.tensor([False, True, False]))
    plain, from_latent = model(x).x_hat, model.decoder(out.latent)
    torch.testing.assert_close(out.x_hat[[0, 2]], plain[[0, 2]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.x_hat[1], from_latent[1], atol=1e-5, rtol=1e-5)
    assert (out.x_hat[1] - plain[1]).abs().max() > 1e-3
    # The codebook learns from all of them.
    assert out.quantized.indices.shape[0] == 3


def test_mismatched_networks_are_refused() -> None:
    encoder, decoder, quantizer = parts()
    with pytest.raises(ValueError, match=r"\(4, 4, 6\) channels"):
        VQAutoencoder(encoder, decoder, VectorQuantizer(16, 6))
    with pytest.raises(ValueError, match=r"downsampling 2 .*downsampling 4"):
        VQAutoencoder(encoder, Decoder(4, 8, (1, 1, 2), 1), quantizer)


def test_compiled_decoder_gives_last_layer_gradients_first() -> None:
    plain, compiled = (Decoder(4, 8, (1, 2), num_blocks=1, stem=2) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compiled.compile(backend="aot_eager")
    latent = torch.randn(1, 4, 4, 4)
    gradients = []
    for decoder in (plain, compiled):
        x_hat = decoder(latent)
        (at_last,) = torch.autograd.grad(x_hat.sum(), decoder.last_layer, retain_graph=True)
        x_hat.square().sum().backward()
        gradients.append([at_last, *(p.grad for p in decoder.parameters())])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_bounded_latent_is_within_half_a_level_of_its_codeword() -> None:
    quantizer = FiniteScalarQuantizer(4**3 * 2, 4, [4, 4, 4, 2])
    encoder = Encoder(4, 8, (1, 2), 1, bounded=True)
    out = VQAutoencoder(encoder, Decoder(4, 8, (1, 2), 1), quantizer)(10 * torch.randn(2, 3, 8, 8))
    assert out.latent.abs().max() < 1
    distance = (out.latent - quantizer.decode(out.quantized.indices)).abs().amax((0, 2, 3))
    assert (distance <= torch.tensor([1 / 3, 1 / 3, 1 / 3, 1]) + 1e-6).all()
    free = Encoder(4, 8, (1, 2), 1)
    free.load_state_dict(encoder.state_dict())
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(encoder(x), free(x).tanh())


@pytest.mark.parametrize(("width", "bounded"), [(4, False), (5, True)])
def test_finite_scalar_quantisation_of_another_latent_is_refused(width: int, bounded: bool) -> None:
    encoder = Encoder(width, 8, (1, 2), 1, bounded=bounded)
    quantizer = FiniteScalarQuantizer(16, width, [2, 2, 2, 2])
    with pytest.raises(ValueError, match=r"model\.encoder\.bounded=true and model\.latent_channels=4$"):
        VQAutoencoder(encoder, Decoder(width, 8, (1, 2), 1), quantizer)
