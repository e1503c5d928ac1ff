"""The convolutions of amx.c against PyTorch's in float64."""

import ctypes

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.runtime import amx, row_tiles
from glc.codec.runtime.amx import PackedWeights
from glc.codec.runtime.row_tiles import Source, fill
from glc.codec.runtime.threads import Workers
from glc.codec.runtime.tiled_layers import Convolution


@pytest.fixture
def library() -> ctypes.CDLL:
    found = amx.library()
    if found is None:
        pytest.skip("no AMX, no C compiler, or compiled kernels are disabled")
    return found


def convolution(ins: int, outs: int, side: int = 3, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(ins + outs)
    padding = side // 2 if stride == 1 else 0
    return nn.Conv2d(ins, outs, side, stride, padding, bias=bias)


def channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def of_map(x: Tensor) -> Source:
    return Source(x.shape[2], lambda a, b: x[:, :, a:b])


@torch.inference_mode()
@pytest.mark.parametrize(
    ("ins", "outs", "height", "width"),
    # Less than a block of 16 or 32 pixels, several strips, channels that fill the registers or do not.
    [(64, 64, 12, 48), (80, 48, 5, 31), (64, 112, 1, 1), (144, 32, 14, 6), (64, 80, 4, 418)],
)
@pytest.mark.parametrize("kind", ["3x3", "3x3, upsampled", "3x3 of stride 2", "1x1"])
def test_a_convolution_in_row_tiles_equals_float64(
    ins: int,
    outs: int,
    height: int,
    width: int,
    kind: str,
    library: ctypes.CDLL,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stride, doubles = (2 if "stride" in kind else 1), "upsampled" in kind
    height, width = (max(2, size // stride * stride) for size in (height, width))
    conv = convolution(ins, outs, int(kind[0]), stride, bias=not doubles)
    x = channels_last(1, ins, height, width)
    given = F.interpolate(x, scale_factor=2.0) if doubles else x
    given = F.pad(given, (0, 1, 0, 1)) if stride == 2 else given
    expected = conv.double()(given.double())
    conv.float()
    tiled = Convolution(conv, torch.float32, doubles)
    assert tiled._kernel == (PackedWeights, library)
    before = channels_last(*expected.shape)
    for elements in (1, 1 << 20):
        monkeypatch.setattr(row_tiles, "TILE_ELEMENTS", elements)
        for add in (False, True):
            out = before.clone(memory_format=torch.channels_last)
            with Workers() as workers:
                fill(out, tiled.writing(of_map(x), workers), False, workers, add=add)
            error = (out.double() - expected - add * before).square().mean()
            assert error < 1e-10 * expected.square().mean()  # 100 dB
            torch.testing.assert_close(out.double(), expected + add * before, rtol=0, atol=5e-5)


@torch.inference_mode()
def test_only_the_requested_rows_and_channels_are_written(library: ctypes.CDLL) -> None:
    conv, x = convolution(64, 128), channels_last(1, 64, 20, 45)
    expected, out = conv(x), torch.full((1, 128, 20, 45), 7.0).contiguous(memory_format=torch.channels_last)
    with Workers() as workers:
        weights = PackedWeights(conv, library, workers)
        weights.convolve(x[:, :, 5:14], 5, 20, 6, out[:, 64:, 6:13], 64, add=False)
    torch.testing.assert_close(out[:, 64:, 6:13], expected[:, 64:, 6:13], rtol=0, atol=5e-5)
    out[:, 64:, 6:13] = 7
    assert (out == 7).all()


@torch.inference_mode()
def test_values_outside_an_output_do_not_change_it(library: ctypes.CDLL) -> None:
    conv, x = convolution(64, 32), channels_last(1, 64, 9, 40)
    expected = conv(x)
    x[0, :, 8, 39] = torch.nan
    out = torch.empty_like(expected, memory_format=torch.channels_last)
    with Workers() as workers:
        weights = PackedWeights(conv, library, workers)
        weights.convolve(x, 0, 9, 0, out, 0, add=False)
    assert out.isnan().any(1)[0].nonzero().tolist() == [[7, 38], [7, 39], [8, 38], [8, 39]]
    torch.testing.assert_close(out[:, :, :7], expected[:, :, :7], rtol=0, atol=5e-5)


def test_the_kernel_refuses_other_types(library: ctypes.CDLL) -> None:
    x, out = channels_last(1, 64, 9, 10), torch.zeros(1, 48, 9, 10, dtype=torch.bfloat16)
    with Workers() as workers:
        weights = PackedWeights(convolution(64, 48), library, workers)
        for wrong in ((x, out), (x.bfloat16(), out.float()), (x, out.float())):
            with pytest.raises(ValueError, match="needs float32 and contiguous channels"):
                weights.convolve(wrong[0], 0, 9, 0, wrong[1], 0, False)


def test_other_convolutions_are_not_taken() -> None:
    assert amx.suits(convolution(64, 32))
    for conv in (
        convolution(48, 64),
        convolution(64, 40),
        convolution(72, 64),
        convolution(64, 64, side=5),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, 2, padding=1),
        nn.Conv2d(64, 64, (3, 1), padding=(1, 0)),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
    ):
        assert not amx.suits(conv), conv


def test_without_permission_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "permits_amx", lambda: False)
    assert amx.library() is None
    assert Convolution(convolution(64, 40), torch.float32)._kernel is None
