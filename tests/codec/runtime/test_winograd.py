"""The kernels of winograd.c against PyTorch, and the path without them."""

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.runtime import row_tiles, winograd
from glc.codec.runtime.row_tiles import Source, fill
from glc.codec.runtime.threads import Scratch, Workers
from glc.codec.runtime.tiled_layers import Convolution
from glc.codec.runtime.winograd import TransformedWeights


@pytest.fixture
def library() -> ctypes.CDLL:
    found = winograd.library()
    if found is None:
        pytest.skip("no C compiler, or winograd.c is disabled")
    return found


def convolution(ins: int, outs: int, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(ins + outs)
    return nn.Conv2d(ins, outs, 3, padding=1, bias=bias)


def channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def of_map(x: Tensor) -> Source:
    return Source(x.shape[2], lambda a, b: x[:, :, a:b])


@torch.inference_mode()
@pytest.mark.parametrize(
    ("ins", "outs", "height", "width"),
    # Full and partial tiles, less than a tile, channels that fill the processor's vectors or do not.
    [(32, 32, 12, 18), (48, 80, 7, 25), (64, 48, 1, 1), (144, 96, 13, 6), (32, 208, 5, 160)],
)
@pytest.mark.parametrize("doubles", [False, True])
def test_convolution_in_row_tiles_equals_pytorch(
    ins: int,
    outs: int,
    height: int,
    width: int,
    doubles: bool,
    library: ctypes.CDLL,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conv = convolution(ins, outs, bias=not doubles)
    assert winograd.suits(conv)  # or PyTorch would convolve
    x = channels_last(1, ins, height, width)
    given = F.interpolate(x, scale_factor=2.0) if doubles else x
    expected = conv.double()(given.double())
    conv.float()
    convolution_in_tiles = Convolution(conv, torch.float32, doubles)
    before = channels_last(*expected.shape)
    for elements in (1, 1 << 20):
        monkeypatch.setattr(row_tiles, "TILE_ELEMENTS", elements)
        for add in (False, True):
            out = before.clone(memory_format=torch.channels_last)
            with Workers() as workers:
                fill(out, convolution_in_tiles.writing(of_map(x), workers), False, workers, add=add)
            torch.testing.assert_close(out.double(), expected + add * before, rtol=0, atol=5e-5)


@torch.inference_mode()
def test_only_the_requested_rows_and_channels_are_written(library: ctypes.CDLL) -> None:
    conv, x = convolution(32, 128), channels_last(1, 32, 20, 15)
    expected, out = conv(x), torch.full((1, 128, 20, 15), 7.0).contiguous(memory_format=torch.channels_last)
    with Workers() as workers:
        weights = TransformedWeights(conv, library, workers)
        weights.convolve(x[:, :, 5:14], 5, 20, 6, out[:, 64:, 6:13], 64, add=False)
    torch.testing.assert_close(out[:, 64:, 6:13], expected[:, 64:, 6:13], rtol=0, atol=2e-5)
    out[:, 64:, 6:13] = 7
    assert (out == 7).all()


@torch.inference_mode()
@torch.inference_mode()
@pytest.mark.parametrize("add", [False, True])
def test_a_bfloat16_map_gets_rounded_rows(add: bool, library: ctypes.CDLL) -> None:
    conv, x = convolution(32, 48), channels_last(1, 32, 9, 10)
    out = torch.ones(1, 48, 11, 10, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    with Workers() as workers:
        write = Convolution(conv, torch.float32).writing(of_map(x), workers)
        write(0, out[:, :, :9], 0, add)
    torch.testing.assert_close(out[:, :, :9].float(), conv(x) + add, rtol=1e-2, atol=1e-2)
    assert (out[:, :, 9:] == 1).all()  # the kernel writes twice as many bytes


def test_the_kernel_refuses_other_types(library: ctypes.CDLL) -> None:
    x, out = channels_last(1, 32, 9, 10), torch.zeros(1, 48, 9, 10, dtype=torch.bfloat16)
    with Workers() as workers:
        weights = TransformedWeights(convolution(32, 48), library, workers)
        for wrong in ((x, out), (x.bfloat16(), out.float()), (x, out.float())):
            with pytest.raises(ValueError, match="needs float32 and contiguous channels"):
                weights.convolve(wrong[0], 0, 9, 0, wrong[1], 0, False)


def test_rows_beyond_the_given_ones_are_not_read(library: ctypes.CDLL) -> None:
    conv, x = convolution(32, 32), channels_last(1, 32, 40, 15)
    expected, out = conv(x), torch.empty(1, 32, 10, 15).contiguous(memory_format=torch.channels_last)
    surrounded = torch.full_like(x, torch.nan)
    surrounded[:, :, 9:21] = x[:, :, 9:21]
    with Workers() as workers:
        # Ten rows end in a partial tile, whose eight input rows extend beyond the twelve given.
        TransformedWeights(conv, library, workers).convolve(
            surrounded[:, :, 9:21], 9, 40, 10, out, 0, add=False
        )
    torch.testing.assert_close(out, expected[:, :, 10:20], rtol=0, atol=2e-5)


@torch.inference_mode()
@pytest.mark.parametrize("swish", [False, True])
def test_normalize_equals_scale_shift_and_swish(swish: bool, library: ctypes.CDLL) -> None:
    x = channels_last(1, 48, 9, 7) * 30
    x[0, :4, 0, 0] = torch.tensor([1e4, -1e4, 88.5, -88.5])
    scale, shift = torch.rand(48) + 0.5, torch.randn(48)
    expected = x.double() * scale.double()[:, None, None] + shift.double()[:, None, None]
    expected = F.silu(expected) if swish else expected
    found = winograd.normalize(library, x[:, :, 1:8], scale, shift, swish)
    torch.testing.assert_close(found.double(), expected[:, :, 1:8], rtol=2e-6, atol=1e-6)
    x[0, 3, 4, 5] = torch.nan
    assert winograd.normalize(library, x, scale, shift, swish).isnan().nonzero().tolist() == [[0, 3, 4, 5]]


@torch.inference_mode()
def test_without_the_library_pytorch_convolves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "library", lambda: None)
    conv, x = convolution(32, 32), channels_last(1, 32, 9, 9)
    with Workers() as workers:
        out = torch.empty_like(x)
        fill(out, Convolution(conv, torch.float32).writing(of_map(x), workers), False, workers)
        torch.testing.assert_close(out, conv(x), rtol=1e-5, atol=1e-5)


def test_each_thread_has_its_own_scratch_buffer(library: ctypes.CDLL) -> None:
    x, one, zero = channels_last(1, 32, 30, 40), torch.ones(32), torch.zeros(32)
    started = threading.Barrier(3)

    def scaled(factor: int) -> bool:
        started.wait()
        return all(
            torch.equal(winograd.normalize(library, x, one * factor, zero, False), x * factor)
            for _ in range(200)
        )

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(scaled, (1, 2, 4)))


def test_workers_keep_order_raise_the_first_error_and_restore_thread_counts(
    set_threads: Callable[[int], None],
) -> None:
    set_threads(3)
    with torch.inference_mode(), Workers() as workers:
        assert workers.map(lambda i: i * i, range(50)) == [i * i for i in range(50)]
        assert set(workers.map(lambda _: torch.get_num_threads(), range(50))) == {1}
        assert all(workers.map(lambda _: torch.is_inference_mode_enabled(), range(9)))
        with pytest.raises(ZeroDivisionError):
            workers.map(lambda i: 1 // (i - 3), range(9))
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 3


def test_workers_compute_in_the_caller_if_no_thread_can_be_started(
    set_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, started = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    set_threads(3)
    monkeypatch.setattr(threading.Thread, "start", start)
    with Workers() as workers:
        assert workers.map(lambda i: i + 1, range(5)) == [1, 2, 3, 4, 5]
    assert torch.get_num_threads() == 3


def test_scratch_buffer_is_reused_and_shrinks_when_much_too_large() -> None:
    scratch = Scratch()
    first = scratch.take(1000, torch.float32)
    assert scratch.take(500, torch.float32).data_ptr() == first.data_ptr()
    assert scratch.take(100, torch.float32).untyped_storage().nbytes() == 400
