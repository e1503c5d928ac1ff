"""User-defined networks in the codec: round trips, and refusal of those without an integer form."""

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import glc
from glc.codec.codec import Codec
from glc.codec.entropy.latent_coding import make_latent_codec
from glc.codec.entropy.tables import gaussian_tables
from glc.codec.runtime.resources import MemoryLimitError, resident_memory
from glc.codec.weights.export import make_tables, rate_points
from glc.codec.weights.file import Weights
from glc.errors import InexactError, WeightsError
from glc.layers.blocks import DepthConvBlock, SubpixelUpsample
from glc.models.coder import TransformCoder
from glc.models.context import QuadtreeContext
from glc.models.entropy import gaussian_bits
from glc.models.glc import GLC
from glc.models.hyperprior import CategoricalHyperprior, FactorizedHyperprior, HyperOutput
from glc.models.quantizer import VectorQuantizer
from tests.codec.fixed_model import fixed_image

LATENT, N = 6, 8


class MyEncoder(nn.Module):
    """Two strided convolutions and an average over the whole image, which no row tile could have."""

    latent_channels, downsampling = LATENT, 4

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 5, stride=2, padding=2)
        self.second = nn.Conv2d(12, LATENT, 5, stride=2, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.first(x))
        return 20 * self.second(h + h.mean((2, 3), keepdim=True))


class MyDecoder(nn.Module):
    latent_channels, downsampling = LATENT, 4

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(LATENT, 3, 4, stride=4)

    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.up(latent))


class Mixed(nn.Module):
    """Supported layers in a module of the user's, with arithmetic of its own between them."""

    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        self.up = SubpixelUpsample(N, N)
        self.conv = nn.Conv2d(N, N, 5, padding=2)
        self.same = self.conv
        self.act = nn.ReLU()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, N)[:, None, None])
        self.wide = nn.Conv2d(N, 3 * N, 1)
        self.last = last or nn.LeakyReLU(0.2)

    def forward(self, z_hat: Tensor) -> Tensor:
        h = F.interpolate(self.up(z_hat), scale_factor=2.0, mode="nearest")
        h = self.same(self.act(self.conv(h)) * self.gain + h)
        return self.last(self.wide(h)) + 0.75


class MyHyperprior(nn.Module):
    """Indices at 1/4 of the latent, with an analysis that pools."""

    def __init__(self, synthesis: nn.Module | None = None) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(N, N, 1)
        self.quantizer = VectorQuantizer(20, N)
        nn.init.normal_(self.quantizer.embedding)
        self.synthesis = synthesis or Mixed()

    def forward(self, y: Tensor, noise: bool = False) -> HyperOutput:
        z = F.avg_pool2d(self.reduce(y), 4)
        z = z - z.mean((2, 3), keepdim=True)
        z = z / z.square().mean().sqrt()
        found = self.quantizer(z)
        bits = z.new_full((len(z),), found.indices[0].numel() * 20.0)
        return HyperOutput(z, found.quantized, found.codes, found.indices, bits)

    def decode(self, indices: Tensor) -> Tensor:
        return self.quantizer.decode(indices)


class MyDensity(nn.Module):
    """Gaussians of a width per channel."""

    channels = 5

    def forward(self, symbols: Tensor) -> Tensor:
        scales = torch.linspace(0.5, 4, self.channels)[:, None, None].expand_as(symbols)
        return gaussian_bits(symbols, scales)


class HalvedHyperprior(nn.Module):
    """Integers of five channels at 1/2 of the latent: another stride, another number of channels."""

    downsampling = 2

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(N, 5, 4, stride=2, padding=1)
        self.density = MyDensity()
        self.synthesis = nn.Sequential(nn.Conv2d(5, 12 * N, 3, padding=1), nn.PixelShuffle(2))
        self.synthesis.append(DepthConvBlock(3 * N, 3 * N))

    def forward(self, y: Tensor, noise: bool = False) -> HyperOutput:
        z = 3 * self.down(y)
        return HyperOutput(z, z.round(), None, z.round().long(), self.density(z.round()).sum((1, 2, 3)))

    def decode(self, indices: Tensor) -> Tensor:
        return indices.float() * 0.25


class WiderFactorized(FactorizedHyperprior):
    """A subclass: another synthesis."""

    def __init__(self) -> None:
        super().__init__(N)
        self.synthesis.insert(2, nn.Conv2d(N, N, 3, padding=1))

    def forward(self, y: Tensor, noise: bool = False) -> HyperOutput:
        return super().forward(20 * y, noise)


class MyTransform(nn.Module):
    """g_a or g_s without rate points of its own but for a factor."""

    def __init__(self, ins: int, outs: int, factor: float) -> None:
        super().__init__()
        self.mix = nn.Conv2d(ins, outs, 3, padding=1)
        self.factor = factor

    def forward(self, x: Tensor, rate_index: int | float | Tensor) -> Tensor:
        scale = self.factor ** torch.as_tensor(rate_index, dtype=torch.float32)
        return 2 * self.mix(x) * scale.view(-1, 1, 1, 1)


class TwoSteps(QuadtreeContext):
    """A checkerboard: two steps, which the walk of a user's own yields."""

    def masks(self, height: int, width: int, device: torch.device | None = None) -> Tensor:
        rows, cols = torch.arange(height, device=device), torch.arange(width, device=device)
        even = ((rows[:, None] + cols) % 2 == 0).expand(self.channels, height, width)
        none = torch.zeros_like(even)
        return torch.stack((even, ~even, none, none))[:, None]


HYPERS = {
    "own": MyHyperprior,
    "other stride": HalvedHyperprior,
    "subclass": WiderFactorized,
    "categorical": lambda: CategoricalHyperprior(N, 16),
}


def weights_of(model: GLC) -> Weights:
    model.eval()
    return Weights(model, {}, make_tables(model), rate_points(model), "5a" * 32)


def make(hyper: str = "own", context: type = QuadtreeContext) -> GLC:
    torch.manual_seed(1)
    transforms = (MyTransform(LATENT, N, 2.0), MyTransform(N, LATENT, 0.5)) if hyper == "own" else ()
    coder = TransformCoder(LATENT, HYPERS[hyper](), context(N, depth=1), 3, *transforms)
    return GLC(MyEncoder(), MyDecoder(), coder)


@pytest.mark.parametrize("hyper", HYPERS)
@pytest.mark.parametrize("context", [QuadtreeContext, TwoSteps])
def test_user_networks_round_trip_on_any_number_of_threads(
    hyper: str, context: type, set_threads: Callable[[int], None]
) -> None:
    model = make(hyper, context=context)
    codec, other = Codec(weights_of(model)), Codec(weights_of(copy.deepcopy(model)))
    assert codec.model.stride == 4 * (2 if hyper == "other stride" else 4)
    images = [torch.from_numpy(fixed_image(45, 70, seed)).permute(2, 0, 1)[None] for seed in range(2)]
    for quality in (0, 30, 100):
        rate_index = codec.rate_index(quality)
        set_threads(2)
        files, sent = codec.entropy_encode(codec.encode_latent(images), [(45, 70)] * 2, rate_index)
        assert sent.y.unique().numel() > 2
        assert sent.z.unique().numel() > 1
        set_threads(1)
        for i, data in enumerate(files):
            symbols = other.symbols(data)
            assert symbols == glc.Symbols(sent.z[i : i + 1], sent.y[i : i + 1])
            assert other.from_symbols(symbols, (45, 70), rate_index) == data
            assert other.decompress(data).size == (70, 45)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_user_encoders_and_decoders_get_untiled_images(precision: str) -> None:
    model = make()
    codec = Codec(weights_of(model), precision=precision)
    image = fixed_image(48, 64)
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = model.encoder(x / 127.5 - 1)
        found = codec.encode_latent([x])
        drawn = np.asarray(codec.decode_latent(expected, [(40, 60)])[0]).astype(float)
        wanted = (model.decoder(expected)[0, :, :40, :60].permute(1, 2, 0) + 1) * 127.5
    near = 1e-5 if precision == "float32" else 0.1
    assert (found - expected).abs().max() < near * expected.abs().max()
    assert np.abs(drawn - wanted.clamp(0, 255).numpy()).max() < (0.51 if precision == "float32" else 4)


def test_user_entropy_models_of_z_get_their_own_tables() -> None:
    weights = weights_of(make("other stride"))
    assert len(weights.tables.z) == MyDensity.channels
    widths = [table.high - table.low for table in weights.tables.z]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_memory_error_names_user_networks() -> None:
    weights = weights_of(make())
    codec = Codec(weights, memory=resident_memory() + (1 << 22))
    with pytest.raises(MemoryLimitError, match=r"encoder .*MyEncoder needs more .* only networks of glc run"):
        codec.compress(np.zeros((1024, 1024, 3), np.uint8))
    with pytest.raises(MemoryLimitError, match=r"decoder .*MyDecoder"):
        codec.decode_latent(torch.zeros(1, LATENT, 512, 512), [(2048, 2048)])


class Exponent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-1, 1).exp()


class Average(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean((2, 3), keepdim=True)


class Hidden(nn.Module):
    """A convolution that no layer stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * N, 3 * N, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class Doubled(nn.Conv2d):
    """A layer of torch's whose forward is another."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Softened(MyHyperprior):
    def decode(self, indices: Tensor) -> Tensor:
        return super().decode(indices).sigmoid()


class Tempered(QuadtreeContext):
    def predict(self, k: int, y_hat: Tensor, reduced: Tensor) -> tuple[Tensor, Tensor]:
        scales, means = super().predict(k, y_hat, reduced)
        return F.softplus(scales), means


class Twice(QuadtreeContext):
    def masks(self, height: int, width: int, device: torch.device | None = None) -> Tensor:
        return super().masks(height, width, device).roll(1, 0) | super().masks(height, width, device)


def refusal(hyper: nn.Module, context: type = QuadtreeContext, error: type[ValueError] = InexactError) -> str:
    """Return why a coder cannot encode files."""
    with pytest.raises(error) as caught:
        make_latent_codec(TransformCoder(LATENT, hyper, context(N, depth=1)), gaussian_tables())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (nn.GELU(), "(GELU) cannot"),
        (nn.Linear(4, 4), "(Linear) cannot"),
        (nn.ReLU6(), "(ReLU6) cannot"),
        (nn.BatchNorm2d(3 * N), "(BatchNorm2d) cannot"),
        (nn.ConvTranspose2d(3 * N, 3 * N, 1), "(ConvTranspose2d) cannot"),
        (nn.Softmax(1), "(Softmax) cannot"),
        (nn.GroupNorm(2, 3 * N), "(GroupNorm) cannot"),
        (nn.Conv2d(3 * N, 3 * N, 3, padding=2, dilation=2), "(Conv2d("),
        (Exponent(), "(Exponent) computes exp,"),
        (Average(), "(Average) computes mean,"),
        (Hidden(), "(Hidden) computes convolution,"),
        (Doubled(3 * N, 3 * N, 1), "(Doubled) cannot be computed in integers (Input type"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_without_an_integer_form_are_refused_by_name(last: nn.Module, reason: str) -> None:
    found = refusal(MyHyperprior(Mixed(last)))
    assert found.startswith(f"coder.hyper.synthesis.last {reason}")
    assert "supported layers: Conv2d" in found


def test_other_parts_must_have_an_integer_form_too() -> None:
    assert refusal(Softened()).startswith("coder.hyper (Softened) computes sigmoid")
    tempered = refusal(CategoricalHyperprior(N, 16), Tempered)
    assert tempered.startswith("coder.context (Tempered) computes softplus")


def test_contexts_that_code_twice_and_maps_of_wrong_size_are_refused() -> None:
    assert "exactly one" in refusal(CategoricalHyperprior(N, 16), Twice, ValueError)
    found = refusal(MyHyperprior(nn.Sequential(SubpixelUpsample(N, 3 * N))), error=ValueError)
    assert re.search(r"returns \[1, 24, 4, 6\] for z .* needs \[1, 24, 8, 12\]", found)


def test_missing_members_of_user_networks_are_named() -> None:
    plain: Any = nn.Conv2d(3, LATENT, 1)
    for message, call in (
        ("encoder: it has no latent_channels, downsampling", lambda: GLC(plain, MyDecoder(), make().coder)),
        (
            "hyperprior: it has no synthesis, decode",
            lambda: TransformCoder(LATENT, plain, QuadtreeContext(N)),
        ),
        (
            "context model: it has no channels, masks, walk",
            lambda: TransformCoder(LATENT, CategoricalHyperprior(N, 4), plain),
        ),
    ):
        with pytest.raises(ValueError, match=f"Conv2d cannot be the {message}"):
            call()


def test_non_integer_networks_raise_WeightsError() -> None:
    model = make()
    model.coder.hyper.synthesis.last = nn.GELU()
    with pytest.raises(WeightsError, match=r"cannot encode files: coder\.hyper\.synthesis\.last \(GELU\)"):
        Codec(weights_of(model))
