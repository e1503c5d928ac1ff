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
from glc.codec.runtime.winograd import ConvTask, PreparedWeights

CHANNELS = 16
"""Channel counts must be multiples of it."""
_WIDE = 32
"""Output channels of a block of packed weights."""


class _ConvTask(ConvTask):
    """Mirror of `struct conv_task` of amx.c."""

    _fields_ = (("side", ctypes.c_int64), ("stride", ctypes.c_int64))  # type: ignore[assignment]


class PackedWeights(PreparedWeights):
    """The weights of a convolution as sums of two bfloat16."""

    def __init__(
        self, conv: nn.Conv2d, library: ctypes.CDLL, workers: Workers, doubles: bool = False
    ) -> None:
        self._shape = {"side": conv.kernel_size[0], "stride": conv.stride[0]}
        super().__init__(conv, library, workers, doubles)

    def prepare(self, weight: Tensor, workers: Workers) -> None:
        """Pack weights."""
        sizes = *weight.shape[:2], weight.shape[2]
        blocks = -(-self.out_channels // _WIDE)
        self._block = self.library.glc_block_bytes(*sizes[1:])
        self._values = workers.scratch.take(blocks * self._block, torch.uint8)
        strides, to = (ctypes.c_int64 * 4)(*weight.stride()), self._values.data_ptr()

        def pack(block: int) -> None:
            self.library.glc_weights(weight.data_ptr(), strides, *sizes, block, block + 1, to)

        workers.map(pack, range(blocks))

    def run(self, task: dict[str, int], bias: ctypes.c_void_p | None, channel: int, add: bool) -> None:
        """Convolve."""
        given = ctypes.byref(_ConvTask(**task, **self._shape))
        memory = BUFFERS.transforms.take(self.library.glc_bytes(given), torch.uint8)
        weights = self._values.data_ptr() + channel // _WIDE * self._block
        self.library.glc_convolve(given, weights, bias, int(add), memory.data_ptr())


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
