"""Convolutions by matrices of bfloat16, nearly as accurate as in float32, on processors with AMX.

`amx.c` beside this file computes them (`glc.codec.native`): each number is a sum of two bfloat16, and three
of the four products are computed. The errors are about 107 dB below the signal per layer, as those of
Winograd's algorithm in float32, which it replaces where it is faster. Integer networks do not use this.
"""

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.native import Native, permits_amx
from glc.codec.runtime.threads import BUFFERS, Workers

CHANNELS = 16
"""Channel counts must be multiples of it."""
_WIDE = 32
"""Output channels of a block of packed weights."""


class _ConvTask(ctypes.Structure):
    """Mirror of `struct conv_task` of amx.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("first", ctypes.c_int64),
        ("given", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("shift", ctypes.c_int64),
        ("in_channels", ctypes.c_int64),
        ("side", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("start", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("row_stride", ctypes.c_int64),
        ("pixel_stride", ctypes.c_int64),
        ("out_channels", ctypes.c_int64),
    )


class PackedWeights:
    """The weights of a convolution as sums of two bfloat16.

    Args:
        conv: a convolution that `suits` accepts.
        workers: threads that pack the weights, into their scratch buffer, until its next use.
        doubles: upsample the input by two first (`Upsample`).
    """

    def __init__(
        self, conv: nn.Conv2d, library: ctypes.CDLL, workers: Workers, doubles: bool = False
    ) -> None:
        weight = conv.weight.detach().float()
        self.out_channels, self.in_channels, self.side = weight.shape[:3]
        self.stride = conv.stride[0]
        self.library, self.doubles = library, doubles
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        blocks = -(-self.out_channels // _WIDE)
        self._block = library.glc_block_bytes(self.in_channels, self.side)
        self._values = workers.scratch.take(blocks * self._block, torch.uint8)
        strides = (ctypes.c_int64 * 4)(*weight.stride())

        def pack(block: int) -> None:
            sizes = self.out_channels, self.in_channels, self.side
            library.glc_weights(weight.data_ptr(), strides, *sizes, block, block + 1, self._values.data_ptr())

        workers.map(pack, range(blocks))

    def convolve(
        self, x: Tensor, first: int, height: int, start: int, out: Tensor, channel: int, add: bool
    ) -> None:
        """Write rows of the output.

        Args:
            x: rows of the input, `[1, C, rows, W]`, float32, channels-last: those that the output rows depend
                on, within the input.
            first: index of the first of these rows.
            height: rows of the complete input, which is zero-padded.
            start: index of the first output row to write.
            out: `[1, channels, rows, W]`, float32, its channels contiguous in memory.
            channel: first output channel to write, a multiple of 32.
            add: add to `out` instead of overwriting it.

        Raises:
            ValueError: x or out is not float32. The kernel would write past the end of `out`.
        """
        if x.dtype != torch.float32 or out.dtype != torch.float32 or out.stride(1) != 1:
            raise ValueError(
                f"the kernel needs float32 and contiguous channels, not {x.dtype} to {out.dtype}"
            )
        shift = int(self.doubles)
        if x.stride()[1:] != (1, x.shape[3] * self.in_channels, self.in_channels):
            x = x.contiguous(memory_format=torch.channels_last)
        task = _ConvTask(
            x=x.data_ptr(),
            first=first,
            given=x.shape[2],
            height=height << shift,
            width=x.shape[3] << shift,
            shift=shift,
            in_channels=self.in_channels,
            side=self.side,
            stride=self.stride,
            start=start,
            rows=out.shape[2],
            out=out.data_ptr(),
            row_stride=out.stride(2),
            pixel_stride=out.stride(3),
            out_channels=out.shape[1],
        )
        weights = self._values.data_ptr() + channel // _WIDE * self._block
        bias = None if self.bias is None else self.bias[channel:].data_ptr()
        memory = BUFFERS.transforms.take(self.library.glc_bytes(ctypes.byref(task)), torch.uint8)
        self.library.glc_convolve(ctypes.byref(task), weights, bias, int(add), memory.data_ptr())


def suits(conv: nn.Conv2d) -> bool:
    """Whether a convolution can be computed here, and faster than elsewhere."""
    side, stride = conv.kernel_size[0], conv.stride[0]
    kind = (side, stride, conv.padding)
    # 3x3 convolutions of fewer channels: Winograd's algorithm is as fast.
    least = 64 if kind == (3, 1, (1, 1)) else 2 * CHANNELS
    return (
        kind in ((3, 1, (1, 1)), (3, 2, (0, 0)), (1, 1, (0, 0)))
        and conv.kernel_size == (side, side)
        and conv.stride == (stride, stride)
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.in_channels % CHANNELS == conv.out_channels % CHANNELS == 0
        and conv.in_channels >= least
        and conv.out_channels >= 2 * CHANNELS
    )


def library() -> ctypes.CDLL | None:
    """Return the library of amx.c; None without AMX, or if it cannot be compiled or fails its self-test."""
    return NATIVE.library() if permits_amx() else None


def _declare(library: ctypes.CDLL) -> None:
    int64, address = ctypes.c_int64, ctypes.c_void_p
    library.glc_sizeof_conv_task.restype = library.glc_bytes.restype = int64
    library.glc_block_bytes.restype = int64
    library.glc_bytes.argtypes = (address,)
    library.glc_block_bytes.argtypes = (int64, int64)
    library.glc_weights.argtypes = (address, address, *(int64,) * 5, address)
    library.glc_convolve.argtypes = (address, address, address, ctypes.c_int, address)
    library.glc_weights.restype = library.glc_convolve.restype = None


def _self_test(library: ctypes.CDLL) -> bool:
    if library.glc_sizeof_conv_task() != ctypes.sizeof(_ConvTask):
        return False
    with torch.inference_mode(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
        return all(_equals_pytorch(library, *kind) for kind in ((3, 1, False), (3, 1, True), (3, 2, False)))


def _equals_pytorch(library: ctypes.CDLL, side: int, stride: int, doubles: bool) -> bool:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    state = torch.get_rng_state()  # restored below; skip_init would avoid this but imports 500 modules
    conv = nn.Conv2d(48, 112, side, stride, padding=stride % 2, dtype=torch.float32, device="cpu")
    torch.set_rng_state(state)
    for parameter in conv.parameters():
        parameter.copy_(noise(*parameter.shape))
    x = noise(1, 48, 9, 40).contiguous(memory_format=torch.channels_last)
    given = F.interpolate(x, scale_factor=2.0) if doubles else x
    expected = conv(given if stride == 1 else F.pad(given, (0, 1, 0, 1)))
    out = torch.ones_like(expected).contiguous(memory_format=torch.channels_last)
    weights = PackedWeights(conv, library, Workers(), doubles)
    weights.convolve(x, 0, 9, 0, out[:, :64], 0, add=False)
    weights.convolve(x, 0, 9, 0, out[:, 64:], 64, add=True)
    expected[:, 64:] += 1
    return torch.allclose(out, expected, rtol=0, atol=1e-2)


NATIVE = Native(Path(__file__).with_suffix(".c"), _declare, _self_test)
