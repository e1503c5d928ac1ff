"""Layers in 16-bit and 32-bit integers equal those in float64 bit for bit."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from glc.codec.entropy import integer_kernels, integer_nets
from glc.codec.entropy.integer_nets import IntegerDepthConv, IntegerFeedForward, to_integer_network
from glc.codec.native import permits_amx
from glc.layers.blocks import DepthConv, DepthConvBlock, GatedFeedForward
from glc.models.context import QuadtreeContext
from glc.models.hyperprior import CategoricalHyperprior

pytestmark = pytest.mark.skipif(
    integer_kernels.NATIVE.library() is None,
    reason="no C compiler, a processor without AVX2, or kernels disabled",
)


@pytest.fixture(autouse=True, scope="module", params=["vectors", "AMX"])
def amx(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Run each test without and with AMX; return whether it is used."""
    library = integer_kernels.NATIVE.library()
    wanted = request.param == "AMX"
    assert library is not None
    if library.glc_use_amx(wanted and permits_amx()) != wanted:
        pytest.skip("a processor or system without AMX")
    yield wanted
    library.glc_use_amx(permits_amx())


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Collect for each task whether it was refused as too large."""
    integer_kernels.NATIVE.library()  # run its self-test first, which has tasks of its own
    refusals: list[bool] = []
    run = integer_kernels._run

    def counting(*given: object, **named: object) -> bool:
        done = run(*given, **named)  # type: ignore[arg-type]
        refusals.append(not done)
        return done

    monkeypatch.setattr(integer_kernels, "_run", counting)
    return refusals


def in_float64(network: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(integer_nets, "runs_in_kernels", lambda x: False)
        found: Tensor = network(x)
        return found


def scaled(network: nn.Module, weights: float) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(weights)
    return network


BLOCKS = {
    "depth-wise": lambda: DepthConv(24, 24),
    "depth-wise, wider": lambda: DepthConv(23, 37),
    "feed-forward": lambda: GatedFeedForward(21),
    "block": lambda: DepthConvBlock(16, 40),
    "pointwise": lambda: nn.Sequential(
        nn.Conv2d(5, 3, 1), nn.LeakyReLU(0.1), nn.Conv2d(3, 70, 1, bias=False)
    ),
    "hyper": lambda: CategoricalHyperprior(16, 8).synthesis,
}


@torch.inference_mode()
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 8), (9, 15)])
@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_equal_float64(
    kind: str, size: tuple[int, int], keep: bool, refused: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(len(kind))
    block = scaled(BLOCKS[kind](), 1.0 if kind == "hyper" else 2.0)
    ins = next(m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d))
    network = to_integer_network(nn.Sequential(block), keep=keep)
    for x in (torch.randn(2, ins, *size), torch.randn(1, ins, *size).double() * 20):
        found = network(x)
        assert torch.equal(found, in_float64(network, x, monkeypatch))
        assert found.dtype == torch.float64
    assert refused
    assert not any(refused)


@torch.inference_mode()
@pytest.mark.parametrize("block", [lambda: GatedFeedForward(8), lambda: DepthConv(8, 8)])
@pytest.mark.parametrize(("weights", "inputs"), [(1.0, 16000.0), (12.0, 1.0), (100.0, 1.0), (300.0, 16000.0)])
def test_values_too_large_are_computed_in_float64(
    block: Callable[[], nn.Module],
    weights: float,
    inputs: float,
    refused: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights of more than 16 bits and saturating activations give the same results."""
    network = to_integer_network(nn.Sequential(scaled(block(), weights)))
    x = torch.randn(1, 8, 6, 7) * inputs
    assert torch.equal(network(x), in_float64(network, x, monkeypatch))
    assert refused[0] == (weights >= 12)


@torch.inference_mode()
def test_one_activation_too_large_is_refused(
    amx: bool, refused: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = nn.Conv2d(64, 8, 1)
    with torch.no_grad():
        conv.weight.fill_(0.9)  # rows sum to 58: activations up to about 2048 fit
    network = to_integer_network(nn.Sequential(conv))
    for value, fits in ((2000.0, True), (2048.0, True), (-2048.0, True), (16000.0, amx), (-16000.0, amx)):
        x = torch.zeros(1, 64, 20, 20)
        x[0, 63, 19, 19] = value
        refused.clear()
        assert torch.equal(network(x), in_float64(network, x, monkeypatch))
        assert refused == [not fits]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("weight", "largest", "fits"),
    # Rows of 64 whose sums fit or do not; 2^15 units are one more than 16 bits hold.
    [(0.999, 0.999, True), (1.0, 1.0, False), (0.0, 2.0, False)],
)
def test_weights_that_do_not_fit_are_refused(
    weight: float, largest: float, fits: bool, refused: list[bool]
) -> None:
    conv = nn.Conv2d(64, 8, 1)
    nn.init.constant_(conv.weight, weight)
    conv.weight[3, 5] = largest
    to_integer_network(nn.Sequential(conv))(torch.randn(1, 64, 2, 2))
    assert refused == [not fits]


@torch.inference_mode()
@pytest.mark.parametrize("threads", [1, 2, 5, 100])
def test_bits_do_not_depend_on_threads(threads: int, set_threads: Callable[[int], None]) -> None:
    network = to_integer_network(nn.Sequential(DepthConvBlock(40, 40)))
    x = torch.randn(1, 40, 51, 53)  # more groups of positions than 64
    set_threads(1)
    expected = network(x)
    set_threads(threads)
    for _ in range(5):
        assert torch.equal(network(x), expected)


def test_paper_size_context_model_runs_in_the_kernels(
    refused: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    network, x = to_integer_network(QuadtreeContext(256), keep=False), torch.randn(1, 512, 5, 4)
    with torch.inference_mode():
        found = torch.cat(network.predict(1, x[:, :256], x[:, 256:]), 1)
        monkeypatch.setattr(integer_nets, "runs_in_kernels", lambda x: False)
        assert torch.equal(found, torch.cat(network.predict(1, x[:, :256], x[:, 256:]), 1))
    assert len(refused) == 4 * 3
    assert not any(refused)


@torch.inference_mode()
def test_nan_inputs_stay_nan(refused: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    network = to_integer_network(nn.Sequential(nn.Conv2d(20, 4, 1)))
    for position in (0, 39):  # among sixteen, and in the rest
        x = torch.randn(1, 20, 1, 40)
        x[0, 7, 0, position] = torch.nan
        refused.clear()
        found = network(x)
        assert torch.equal(found.nan_to_num(7e5), in_float64(network, x, monkeypatch).nan_to_num(7e5))
        assert found.isnan().nonzero()[:, 3].unique().tolist() == [position]
        assert refused == [True]


@torch.inference_mode()
@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("block", [nn.Conv2d(8, 4, 1), GatedFeedForward(8), DepthConv(8, 8), DepthConv(8, 9)])
def test_wrong_channel_counts_raise(block: nn.Module, channels: int) -> None:
    with pytest.raises(RuntimeError):
        to_integer_network(nn.Sequential(block))(torch.randn(1, channels, 30, 30))


def test_self_test_covers_each_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    library = integer_kernels.NATIVE.library()
    assert library is not None
    assert integer_kernels._self_test(library)
    for name in ("glc_weights_of_floats", "glc_weights_of_doubles", "glc_layers", "glc_planes"):
        with monkeypatch.context() as patch:
            patch.setattr(library, name, lambda *_: 0)
            assert not integer_kernels._self_test(library), name


def test_gradients_and_other_devices_use_pytorch() -> None:
    layers = to_integer_network(nn.Sequential(GatedFeedForward(8), DepthConv(8, 8)))
    assert [type(layer) for layer in layers] == [IntegerFeedForward, IntegerDepthConv]
    assert not integer_nets.runs_in_kernels(torch.zeros(1, 8, 2, 2, requires_grad=True))
    assert not integer_nets.runs_in_kernels(torch.zeros(1, 8, 2, 2, device="meta"))
    assert integer_nets.runs_in_kernels(torch.zeros(1, 8, 2, 2))
    assert not integer_nets.runs_in_kernels(torch.zeros(8, 2, 2))
    with torch.device("meta"), torch.inference_mode():
        assert layers(torch.zeros(1, 8, 2, 2, device="cpu")).shape == (1, 8, 2, 2)
