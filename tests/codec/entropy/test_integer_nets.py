"""Integer networks against the second decoder, and under every thread count and layout."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glc.codec.entropy import integer_kernels, integer_nets
from glc.codec.entropy.integer_nets import IntegerConv2d, IntegerLeakyReLU, check_device, to_integer_network
from glc.errors import InexactError
from glc.layers.blocks import DepthConvBlock
from glc.models.context import QuadtreeContext
from glc.models.hyperprior import CategoricalHyperprior
from tests.codec.reference_networks import LIMIT, clamp, correlate, rne


@pytest.fixture(params=["integers", "float64"], autouse=True)
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with the C kernels and with PyTorch alone."""
    if request.param == "float64":
        monkeypatch.setattr(integer_nets, "runs_in_kernels", lambda x: False)
    elif integer_kernels.NATIVE.library() is None:
        pytest.skip("no C compiler, a processor without AVX2, or kernels disabled")


def integer_conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, depthwise: bool) -> np.ndarray:
    """Return the convolution of `[B, I, H, W]` in units of 2^-12 as the second decoder computes it."""
    sums = [correlate(weight, image, depthwise) + bias[:, None, None] for image in x]
    return clamp(rne(np.stack(sums), 14))


def make_conv(kind: str, weight: np.ndarray, bias: np.ndarray) -> nn.Conv2d:
    """Return a float convolution with weights in units of 2^-14 and a bias in units of 2^-26."""
    o, i, side, _ = weight.shape
    ins, groups = (o, o) if kind == "depthwise" else (i, 1)
    conv = nn.Conv2d(ins, o, side, padding=side // 2, groups=groups).double()
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(weight / 2**14))
        assert conv.bias is not None
        conv.bias.copy_(torch.from_numpy(bias / 2**26))
    return conv


KINDS = {"pointwise": (6, 9, 1), "depthwise": (8, 1, 3), "dense": (5, 7, 3), "wide depthwise": (4, 1, 5)}


def random_case(kind: str, spread: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    rng = np.random.default_rng(seed)
    o, i, side = KINDS[kind]
    kind = kind.split()[-1]
    weight = rng.integers(-spread, spread + 1, (o, i, side, side))
    bias = rng.integers(-(1 << 28), 1 << 28, o)
    x = rng.integers(-(1 << 16), 1 << 16, (2, o if kind == "depthwise" else i, 5, 6))
    return x, weight, bias, kind


def in_units(y: Tensor) -> np.ndarray:
    """Return activations in units of their grid, on which they must lie."""
    units = y.numpy() * 4096
    assert y.dtype == torch.float64
    assert (units == np.rint(units)).all()
    return units.astype(np.int64)


def convolved(kind: str, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the layer's convolution in units of its grid, which equals that in integers."""
    layer = IntegerConv2d(make_conv(kind, weight, bias))
    found = in_units(layer(torch.from_numpy(x / 4096)))
    assert np.array_equal(found, integer_conv(x, weight, bias, kind == "depthwise"))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_convolution_equals_integer_convolution(kind: str) -> None:
    for seed in range(5):
        x, weight, bias, form = random_case(kind, 1 << 15, seed)
        convolved(form, x, weight, bias)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_saturate(kind: str) -> None:
    x, weight, bias, form = random_case(kind, 1 << 20)
    found = convolved(form, x * 1000, weight, bias)
    assert (found.min(), found.max()) == (-LIMIT, LIMIT)


def test_inputs_saturate_and_are_rounded_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.49, -2.51]) / 4096
    layer = IntegerConv2d(make_conv("pointwise", np.full((1, 1, 1, 1), 1 << 14), np.zeros(1, np.int64)))
    assert layer(x.view(1, 1, 1, -1)).flatten().mul(4096).tolist() == [0, 2, 2, 0, -2, 0, -3]
    for value in (1e9, torch.inf, 16384.0):
        assert layer(torch.tensor([value, -value]).view(1, 1, 1, 2)).flatten().tolist() == [16384, -16384]


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_rounded_half_to_even(kind: str) -> None:
    x, weight, bias, form = random_case(kind, 3)
    # Weights of halves make sums that lie half-way between two steps of the grid.
    weight, x, bias = weight << 13, x & 0xFF, np.zeros_like(bias)
    found = convolved(form, x, weight, bias)
    exact = make_conv(form, weight, bias)(torch.from_numpy(x / 4096)).detach() * 4096
    halves = (exact % 1 == 0.5).numpy()
    assert halves.any()
    assert (found[halves] % 2 == 0).all()


def test_weights_and_biases_are_rounded_to_their_grids() -> None:
    conv = nn.Conv2d(1, 4, 1).double()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([0.5, 1.5, 2.49, -2.5]).view(4, 1, 1, 1) / 2**14)
        assert conv.bias is not None
        conv.bias.copy_(torch.tensor([0.5, 1.5, -1.51, 2**26 + 0.5], dtype=torch.float64) / 2**26)
    layer = IntegerConv2d(conv)
    x = torch.tensor(16384.0).view(1, 1, 1, 1)  # 2^26 units: a weight's unit becomes 2^12 output units
    assert layer(x).flatten().mul(4096).tolist() == [0, 2 << 12, 2 << 12, (-2 << 12) + 4096]
    biases = (layer.bias.flatten() * 2**14).tolist()
    assert biases == [0, 2, -2, 2**26]


def test_missing_bias_equals_zero_bias() -> None:
    conv = nn.Conv2d(3, 3, 1, bias=False)
    x = torch.randn(1, 3, 4, 4)
    found = IntegerConv2d(conv)(x)
    conv.bias = nn.Parameter(torch.zeros(3))
    assert torch.equal(IntegerConv2d(conv)(x), found)


def test_sums_near_53_bits_are_exact_in_any_order() -> None:
    channels, rng = 2048, np.random.default_rng(0)
    # The magnitudes add up to 2^53 less a little; signs let the results come back below saturation.
    magnitude = (1 << 16) - 1 - rng.integers(0, 4, (8, channels))
    signs = np.where(np.arange(channels) % 2, 1, -1)
    weight = (magnitude * signs)[..., None, None]
    x = LIMIT - rng.integers(0, 8, (1, channels, 3, 3))
    bias = np.zeros(8, np.int64)
    assert (magnitude.sum(1) * LIMIT).max() > 0.999 * 2**53
    for order in (np.arange(channels), np.argsort(signs), rng.permutation(channels)):
        found = convolved("pointwise", x[:, order], weight[:, order], bias)
        assert 0 < np.abs(found).max() < LIMIT


def test_weights_too_large_for_53_bits_are_refused() -> None:
    conv = nn.Conv2d(4, 1, 1, bias=False)
    with torch.no_grad():
        conv.weight.fill_(2048)
        conv.weight[0, 0] = 2048 - 2**-10
    IntegerConv2d(conv)
    with torch.no_grad():
        conv.weight[0, 0] = 2048
    with pytest.raises(InexactError, match=r"the\.layer has weights so large"):
        IntegerConv2d(conv, "the.layer")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weights_that_are_not_finite_are_refused(name: str, value: float) -> None:
    conv = nn.Conv2d(2, 2, 1)
    with torch.no_grad():
        getattr(conv, name)[0] = value
    with pytest.raises(InexactError, match="not finite"):
        IntegerConv2d(conv)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 2, padding=1),
        nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
    ids=["stride", "dilation", "groups", "more per group", "unpadded", "padded", "even", "oblong", "reflect"],
)
def test_unsupported_convolutions_are_refused(conv: nn.Conv2d) -> None:
    with pytest.raises(InexactError, match=r"net\.odd \(Conv2d.* supported layers: Conv2d"):
        IntegerConv2d(conv, "net.odd")


def test_leaky_relu_slopes_are_on_the_weight_grid() -> None:
    layer = IntegerLeakyReLU(0.01)
    slope = round(0.01 * 2**14) / 2**14
    x = torch.tensor([-16384.0, -3 / 4096, -0.0, 0.0, 5 / 4096, 16384.0], dtype=torch.float64)
    assert layer(x).tolist() == [-16384 * slope, -3 / 4096 * slope, 0, 0, 5 / 4096, 16384]


def random_network(kind: str) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], Tensor]:
    """Return a network of the entropy model, a function that calls it, and an input of three images."""
    generator = torch.Generator().manual_seed(3)
    if kind == "context":
        network: nn.Module = QuadtreeContext(16, depth=1)

        def call(network: nn.Module, x: Tensor) -> Tensor:
            steps, scales, means, reduced = network.split_prior(x[:, 16:])  # type: ignore[operator]
            return torch.cat((steps, scales, means, reduced, *network.predict(2, x[:, :16], reduced)), 1)  # type: ignore[operator]

        return network, call, torch.randn(3, 64, 8, 10, generator=generator)
    network = CategoricalHyperprior(16, 8).synthesis
    return network, lambda network, x: network(x), torch.randn(3, 16, 3, 5, generator=generator)


NETWORKS = ["context", "synthesis"]


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_integer_networks_approximate_float_networks(kind: str) -> None:
    network, call, x = random_network(kind)
    network.double()
    expected, found = call(network, x.double()), call(to_integer_network(network), x.double())
    # Weights and activations are off by half a step each, in some ten layers of some 30 terms.
    assert (found - expected).abs().max() < 0.02
    assert (found - expected).abs().mean() < 0.002
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_weights_converted_per_call_equal_stored_ones(kind: str) -> None:
    network, call, x = random_network(kind)
    for parameter in network.parameters():  # of many magnitudes, few of them on the grid
        parameter.mul_(torch.linspace(-12, 2, parameter.numel()).exp2().view_as(parameter))
    kept, converted = to_integer_network(network), to_integer_network(network, keep=False)
    layers = [[m for m in each.modules() if isinstance(m, IntegerConv2d)] for each in (kept, converted)]
    assert len(layers[0]) > 5
    for one, other in zip(*layers, strict=True):
        assert other.weight().dtype == torch.float64
        assert torch.equal(one.weight(), other.weight())
        assert one.weight() is one.weight()
        assert not any(buffer.ndim > 2 for buffer in other.buffers())
    assert torch.equal(call(kept, x), call(converted, x))


def test_conversion_leaves_the_network_unchanged() -> None:
    network = DepthConvBlock(4, 8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    copy = to_integer_network(network)
    assert not copy.training
    assert network.training
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert not any(isinstance(m, IntegerConv2d) for m in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_bits_do_not_depend_on_threads_backend_layout_or_batch(
    kind: str, set_threads: Callable[[int], None]
) -> None:
    network, call, x = random_network(kind)
    if isinstance(network, nn.Sequential):
        network = network[1:4]  # one layer of each kind
    network = to_integer_network(network)
    set_threads(1)
    expected = call(network, x)
    for setting in itertools.product(
        (1, 2), (True, False), (torch.contiguous_format, torch.channels_last), (slice(None), slice(1, 2))
    ):
        threads, mkldnn, memory_format, images = setting
        set_threads(threads)
        with torch.backends.mkldnn.flags(enabled=mkldnn):
            found = call(network, x.contiguous(memory_format=memory_format)[images])
        assert torch.equal(found, expected[images]), setting


@torch.no_grad()
def test_bits_do_not_depend_on_summation_order(monkeypatch: pytest.MonkeyPatch) -> None:
    network, call, x = random_network("context")
    network = to_integer_network(network)
    expected = call(network, x)
    product = torch.matmul

    def in_pieces(a: Tensor, b: Tensor) -> Tensor:
        cuts = torch.arange(a.shape[-1]).flip(0).split(7)
        return sum((product(a[..., cut], b[..., cut, :]) for cut in cuts), torch.zeros((), dtype=a.dtype))

    monkeypatch.setattr(integer_nets.torch, "matmul", in_pieces)
    assert torch.equal(call(network, x), expected)


def in_float32(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() @ b.float()).double()


def with_digits(digits: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a product that is rounded to fewer binary digits."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(a @ b)
        return torch.ldexp((mantissa * 2**digits).round() / 2**digits, exponent)

    return product


@pytest.mark.parametrize("product", [in_float32, *map(with_digits, (24, 40, 48, 52))])
def test_products_of_less_than_float64_are_detected(
    product: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_device(torch.device("cpu"))
    monkeypatch.setattr(integer_nets.torch, "matmul", product)
    with pytest.raises(InexactError, match="cpu does not multiply"):
        check_device(torch.device("cpu"))


def test_device_without_float64_is_detected() -> None:
    with pytest.raises(InexactError, match="meta cannot compute in float64"):
        check_device(torch.device("meta"))
