"""The C kernels with gradients: values and gradients against PyTorch in float64, and what they refuse."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training import RandomLPIPS
from glc import fused
from glc.codec.native import SWITCH
from glc.codec.runtime import fused as kernels
from glc.layers.blocks import PixelNorm, ResidualBlock, WindowAttention

needs_compiler = pytest.mark.skipif(
    not kernels.available(), reason="needs a C compiler (cc or gcc) and libgomp"
)


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def map_of(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def differentiated(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The result and the gradients with respect to the inputs, for a gradient that differs at each value."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    seen = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, seen)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert ((one.double() - other).norm() / other.norm()).item() < tolerance


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 3e-3)], ids=str)
@pytest.mark.parametrize("swish", [False, True])
def test_normalization_is_that_of_the_formula(
    threads: int, dtype: torch.dtype, tolerance: float, swish: bool
) -> None:
    x, weight, bias = map_of(2, 48, 5, 7, dtype=dtype), 1 + 0.3 * torch.randn(48), 0.3 * torch.randn(48)

    def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normalized = x / (x.square().mean(1, keepdim=True) + 0.5).sqrt()
        y = normalized * weight[:, None, None] + bias[:, None, None]
        return y * torch.sigmoid(y) if swish else y

    def kernel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = fused.normalize(x, weight, bias, 0.5, swish)
        assert y is not None
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        return y

    expected = differentiated(formula, x.double(), weight.double(), bias.double())
    assert_close(differentiated(kernel, x, weight, bias), expected, tolerance)


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 3e-3)], ids=str)
def test_distance_is_that_of_the_formula(threads: int, dtype: torch.dtype, tolerance: float) -> None:
    x, y, weight = map_of(2, 32, 3, 5, dtype=dtype), map_of(2, 32, 3, 5, seed=1, dtype=dtype), torch.rand(32)

    def formula(x: Tensor) -> Tensor:
        unit = [v / (v.norm(dim=1, keepdim=True) + 0.25) for v in (x, y.double())]
        return (weight[:, None, None] * (unit[0] - unit[1]) ** 2).sum(1)

    def kernel(x: Tensor) -> Tensor:
        distances = fused.unit_distance(x, y, weight, 0.25)
        assert distances is not None
        assert distances.dtype == torch.float32
        return distances

    assert_close(differentiated(kernel, x), differentiated(formula, x.double()), tolerance)


@needs_compiler
def test_a_feature_vector_of_zeros_has_a_distance_and_no_gradient() -> None:
    # The lpips package has NaN there, the gradient of a square root at 0.
    x, y = map_of(1, 16, 1, 2), map_of(1, 16, 1, 2, seed=1)
    x[..., 0] = 0
    distance, gradient = differentiated(lambda x: fused.unit_distance(x, y, torch.ones(16), 1e-10) + 0.0, x)
    assert distance[0, 0, 0].item() == pytest.approx(1)
    assert (gradient[..., 0] == 0).all()
    assert (gradient[..., 1] != 0).any()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(dtype: torch.dtype, value: float) -> None:
    x = map_of(1, 16, 1, 2, dtype=dtype)
    x[0, 3, 0, 0] = value
    y = fused.normalize(x, torch.ones(16), torch.zeros(16), 1e-6, True)
    assert y is not None
    assert y[..., 0].isnan().any()
    assert y[..., 1].isfinite().all()


@needs_compiler
def test_bfloat16_results_are_rounded_to_nearest_even() -> None:
    # Without swish, with a weight of 1: vectors of unit mean square are returned as they are, plus bias.
    x = torch.ones(1, 16, 1, 1, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    bias = torch.tensor([0.0, 2**-8, 2**-8 + 2**-16, 3 * 2**-8] * 4)  # a unit in the last place of 1 is 2^-7
    y = fused.normalize(x, torch.ones(16), bias, 0.0, False)
    assert y is not None
    assert y.flatten()[:4].tolist() == [1, 1, 1 + 2**-7, 1 + 2 * 2**-7]


def test_other_maps_are_left_to_pytorch() -> None:
    weight, bias = torch.ones(16), torch.zeros(16)
    x, wide = map_of(1, 16, 4, 4), map_of(1, 24, 4, 4)
    refused = [x.contiguous(), x.double(), x.half(), x[..., ::2], wide]
    assert not any(kernels.suits(x) for x in refused)
    for x in refused:
        assert fused.normalize(x, weight, bias, 1e-6, True) is None
        assert fused.unit_distance(x, x, weight, 1e-10) is None
    y = map_of(1, 16, 4, 4).requires_grad_()
    assert fused.unit_distance(y.detach(), y, weight, 1e-10) is None


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "kind", [partial(ResidualBlock, 32, 48), partial(WindowAttention, 32, 4)], ids=["residual", "attention"]
)
def test_blocks_compute_the_same_with_and_without(kind: Callable[..., nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block = kind("pixel").to(memory_format=torch.channels_last)
    x = map_of(2, 32, 8, 8)

    def run() -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = block(leaf)
        loss = out.float().square().mean()
        return [out.detach(), *torch.autograd.grad(loss, [leaf, *block.parameters()])]

    expected = run()
    assert fused.fuse(block) == sum(isinstance(m, PixelNorm) for m in block.modules())
    close = 1e-5 if dtype == torch.float32 else 4e-2
    for found, other in zip(run(), expected, strict=True):
        assert (found - other).norm() <= close * other.norm() + 1e-6


@needs_compiler
@pytest.mark.parametrize("net", ["squeeze", "alex"])
def test_lpips_is_that_of_its_package(net: str) -> None:
    torch.manual_seed(0)
    lpips = RandomLPIPS(net)
    x, y = torch.rand(2, 2, 3, 64, 72) * 2 - 1

    def of_the_first(y: Tensor) -> Tensor:
        return lpips(y, x)

    def of_the_second(y: Tensor) -> Tensor:
        return lpips(x, y)

    expected = [t.double() for t in differentiated(of_the_first, y)]
    assert fused.fuse(lpips) == 1
    assert_close(differentiated(of_the_first, y), expected, 1e-4)
    assert_close(differentiated(of_the_second, y), expected, 1e-4)
    with torch.no_grad():
        assert lpips(x, x).abs().max() < 1e-6


@needs_compiler
def test_lpips_with_two_gradients_is_left_to_its_package() -> None:
    torch.manual_seed(0)
    lpips = RandomLPIPS("alex")
    images = [torch.rand(1, 3, 64, 64) * 2 - 1 for _ in range(2)]
    expected = [t.double() for t in differentiated(lpips, *images)]
    fused.fuse(lpips)
    assert_close(differentiated(lpips, *images), expected, 1e-6)


def test_without_kernels_nothing_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    kernels.NATIVE.forget()
    try:
        norm = PixelNorm(16)
        assert fused.fuse(norm) == 0
        assert norm.kernel is None
    finally:
        monkeypatch.undo()
        kernels.NATIVE.forget()


def test_normalization_without_a_kernel_applies_swish_too() -> None:
    norm, x = PixelNorm(8), map_of(1, 8, 2, 2)
    assert torch.equal(norm(x, swish=True), F.silu(norm(x)))
