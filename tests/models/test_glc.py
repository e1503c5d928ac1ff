import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from glc.models.code_predictor import CodePredictionRefiner, CodePredictor
from glc.models.coder import IndicesMapCoder
from glc.models.glc import GLC, GLCOutput
from glc.models.quantizer import VectorQuantizer
from glc.models.transform import Rate

MakeGLC = Callable[..., GLC]


def assert_same(actual: GLCOutput, expected: GLCOutput) -> None:
    for field in dataclasses.fields(GLCOutput):
        got, want = getattr(actual, field.name), getattr(expected, field.name)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4, msg=lambda m, n=field.name: f"{n}: {m}")


def stack(outputs: list[GLCOutput]) -> GLCOutput:
    names = [field.name for field in dataclasses.fields(GLCOutput)]
    fields = {name: [getattr(out, name) for out in outputs] for name in names}
    return GLCOutput(**{name: None if v[0] is None else torch.cat(v) for name, v in fields.items()})


@pytest.mark.parametrize("size", [(16, 16), (16, 80), (48, 112)])
def test_shapes_for_odd_multiples_of_the_stride(make_glc: MakeGLC, size: tuple[int, int]) -> None:
    model = make_glc()
    assert model.stride == 16
    assert model.num_rates == 3
    h, w = size[0] // 4, size[1] // 4
    out = model(torch.rand(2, 3, *size) * 2 - 1, 1)
    assert out.x_hat.shape == (2, 3, *size)
    assert out.latent.shape == out.latent_hat.shape == (2, 6, h, w)
    assert out.y.shape == out.symbols.shape == out.scales.shape == (2, 8, h, w)
    assert out.z.shape == (2, 8, h // 4, w // 4)
    assert out.z_indices.shape == (2, h // 4, w // 4)
    assert out.bits_y.shape == out.bits_z.shape == (2,)
    assert (out.bits_y > 0).all()
    assert (out.scales > 0).all()
    assert torch.equal(out.symbols, out.symbols.round())
    torch.testing.assert_close(out.bits_z, torch.full((2,), h * w / 16 * 4.0))  # 16 codes: 4 bits each
    torch.testing.assert_close(out.bits, out.bits_y + out.bits_z)


@pytest.mark.parametrize("rates", [[0, 0, 0], [2, 0, 1], [0.5, 2.0, 1.25]])
def test_a_batch_is_its_images_one_by_one(make_glc: MakeGLC, rates: list[Rate]) -> None:
    model = make_glc()
    x = torch.rand(3, 3, 32, 48) * 2 - 1
    alone = [model(x[i : i + 1], rate_index) for i, rate_index in enumerate(rates)]
    assert_same(model(x, torch.tensor(rates)), stack(alone))
    if len(set(rates)) > 1:
        assert not torch.allclose(alone[0].latent_hat, model(x[:1], rates[1]).latent_hat)


def test_data_flow_matches_the_diagram(make_glc: MakeGLC) -> None:
    model = make_glc()
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    out = model(x, 1)
    coded = model.coder(model.encoder(x), 1)
    torch.testing.assert_close(out.latent, model.encoder(x))
    torch.testing.assert_close(out.latent_hat, coded.latent_hat)
    torch.testing.assert_close(out.x_hat, model.decoder(coded.latent_hat))
    torch.testing.assert_close(model.decode_latent(out.latent_hat), out.x_hat)


def test_refiner_is_applied_before_the_decoder(make_glc: MakeGLC) -> None:
    quantizer = VectorQuantizer(20, 6)
    nn.init.normal_(quantizer.embedding)
    predictor = CodePredictor(6, 20, width=16, heads=2, layers=1, grid=4)
    model = make_glc(refiner=CodePredictionRefiner(predictor, quantizer))
    assert model.refiner is not None
    out = model(torch.rand(1, 3, 32, 32) * 2 - 1, 0)
    torch.testing.assert_close(out.latent_hat, model.coder(out.latent, 0).latent_hat)
    torch.testing.assert_close(out.x_hat, model.decoder(model.refiner(out.latent_hat)))
    assert not torch.allclose(out.x_hat, model.decoder(out.latent_hat))


def test_indices_map_has_no_hyper_latent(make_glc: MakeGLC) -> None:
    model = make_glc(coder=IndicesMapCoder(6, (4, 8)))
    assert model.stride == 4
    assert model.num_rates == 2
    out = model(torch.rand(2, 3, 12, 20) * 2 - 1, torch.tensor([0, 1]))
    assert out.x_hat.shape == (2, 3, 12, 20)
    torch.testing.assert_close(out.bits, torch.tensor([30.0, 45.0]))


def test_noise_moves_only_the_estimate_of_bits(make_glc: MakeGLC) -> None:
    model = make_glc()
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    plain, noisy = model(x, 0), model(x, 0, noise=True)
    assert not torch.equal(plain.bits_y, noisy.bits_y)
    assert_same(dataclasses.replace(noisy, bits_y=plain.bits_y), plain)


def test_every_parameter_learns_from_rate_distortion_and_codebook(make_glc: MakeGLC) -> None:
    model = make_glc().train()
    out = model(torch.rand(2, 3, 32, 32) * 2 - 1, torch.tensor([0.5, 1.5]), noise=True)
    assert out.z_codes is not None
    loss = out.bits_y.mean() + out.x_hat.square().mean() + (out.z.detach() - out.z_codes).square().mean()
    loss.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 40, 32), r"multiples of 16, got 40 x 32"),
        ((1, 3, 32, 17), r"multiples of 16, got 32 x 17"),
        ((1, 1, 32, 32), r"\[B, 3, H, W\], got \[1, 1, 32, 32\]"),
        ((3, 32, 32), r"\[B, 3, H, W\], got \[3, 32, 32\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(make_glc: MakeGLC, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_glc()(torch.zeros(shape), 0)
