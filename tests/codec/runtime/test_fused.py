"""Normalisation in row tiles by the kernel; gradients are tested in tests/test_fused.py."""

import ctypes

import pytest
import torch
import torch.nn.functional as F

from glc.codec.native import SWITCH
from glc.codec.runtime import fused
from glc.codec.runtime.row_tiles import Normalizer
from glc.layers.blocks import PixelNorm

needs_compiler = pytest.mark.skipif(
    not fused.available(), reason="needs a C compiler (cc or gcc) and libgomp"
)


def normalized(channels: int, dtype: torch.dtype, swish: bool) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    norm = PixelNorm(channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    tile = torch.randn(1, channels, 3, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    expected = norm.double()(tile.double())
    norm.float()
    return Normalizer(norm, None, swish)(tile), F.silu(expected) if swish else expected


@torch.inference_mode()
@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("channels", [16, 24], ids=["kernel", "PyTorch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_normalized_tiles_are_those_of_float64(channels: int, dtype: torch.dtype, swish: bool) -> None:
    found, expected = normalized(channels, dtype, swish)
    assert found.dtype == dtype
    close = 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(found.double(), expected, rtol=close, atol=close)


@needs_compiler
@torch.inference_mode()
def test_the_kernel_rounds_bfloat16_once() -> None:
    found, expected = normalized(32, torch.bfloat16, swish=True)
    # Half a unit in the last place is at most 2^-8 of the value; 1e-6 is float32's own error.
    assert ((found.double() - expected).abs() <= expected.abs() * 2**-8 + 1e-6).all()


@needs_compiler
def test_a_library_with_another_structure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = fused.NATIVE.library()
    assert fused.NATIVE._self_test(library)
    size = ctypes.sizeof(fused._FusedTask)
    monkeypatch.setattr(fused.ctypes, "sizeof", lambda structure: size + 8)
    assert not fused.NATIVE._self_test(library)


def test_without_kernels_tiles_are_normalized_by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    fused.NATIVE.forget()
    try:
        assert not fused.available()
        found, expected = normalized(16, torch.float32, swish=True)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    finally:
        monkeypatch.undo()
        fused.NATIVE.forget()
