"""3x3 convolutions in float32 by Winograd's F(6x6, 3x3): a fifth of the multiplications.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.

`winograd.c` beside this file computes them (`glc.codec.native`); without a C compiler PyTorch's convolutions
run instead. The results differ by rounding, about 110 dB below the signal. Integer networks do not use this.
"""

import ctypes
from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.native import Native
from glc.codec.runtime.threads import BUFFERS, Workers

WINOGRAD_TILE = 6
"""Rows and columns of outputs of a Winograd tile."""
CHANNELS = 16
"""Channel counts must be multiples of it: the longest vector, of AVX-512."""
CHANNEL_BLOCK = 64
"""Output channels can be computed separately in blocks that start at multiples of it."""

_TILES = 24
"""Winograd tiles transformed at a time: more do not fit the L2 cache, fewer read the weights more often. A
multiple of ROWS of winograd.c."""


class ConvTask(ctypes.Structure):
    """Mirror of `struct conv_task` of winograd.c, and of the first fields of that of amx.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("first", ctypes.c_int64),
        ("given", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("shift", ctypes.c_int64),
        ("in_channels", ctypes.c_int64),
        ("start", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("row_stride", ctypes.c_int64),
        ("pixel_stride", ctypes.c_int64),
        ("out_channels", ctypes.c_int64),
    )


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


class PreparedWeights(ABC):
    """The weights of a convolution in the form of a compiled kernel.

    Args:
        conv: a convolution that the kernel's `suits` accepts.
        workers: threads that prepare the weights, into their scratch buffer, until its next use.
        doubles: upsample the input by two first (`Upsample`).
    """

    def __init__(
        self, conv: nn.Conv2d, library: ctypes.CDLL, workers: Workers, doubles: bool = False
    ) -> None:
        self.out_channels, self.in_channels = conv.weight.shape[:2]
        self.library, self.doubles = library, doubles
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        self.prepare(conv.weight.detach().float(), workers)

    @abstractmethod
    def prepare(self, weight: Tensor, workers: Workers) -> None:
        """Prepare weights `[O, I, k, k]`, float32."""

    @abstractmethod
    def run(self, task: dict[str, int], bias: ctypes.c_void_p | None, channel: int, add: bool) -> None:
        """Run the kernel; `task` has the fields of `ConvTask`."""

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
            channel: first output channel to write, a multiple of `CHANNEL_BLOCK`.
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
        task = {
            "x": x.data_ptr(),
            "first": first,
            "given": x.shape[2],
            "height": height << shift,
            "width": x.shape[3] << shift,
            "shift": shift,
            "in_channels": self.in_channels,
            "start": start,
            "rows": out.shape[2],
            "out": out.data_ptr(),
            "row_stride": out.stride(2),
            "pixel_stride": out.stride(3),
            "out_channels": out.shape[1],
        }
        self.run(task, None if self.bias is None else _pointer(self.bias[channel:]), channel, add)


class TransformedWeights(PreparedWeights):
    """The transformed weights of a 3x3 convolution: 64 for each 9 of its own."""

    def prepare(self, weight: Tensor, workers: Workers) -> None:
        """Transform weights."""
        library, wide = self.library, self.library.glc_wide()
        blocks = -(-self.out_channels // wide)
        self.values = workers.scratch.take(blocks * 64 * self.in_channels * wide, torch.float32)
        self.values = self.values.view(blocks, 64, self.in_channels, wide)
        strides = (ctypes.c_int64 * 4)(*weight.stride())

        def transform(block: int) -> None:
            to = _pointer(self.values)
            library.glc_weights(
                _pointer(weight), strides, self.out_channels, self.in_channels, block, block + 1, to
            )

        workers.map(transform, range(blocks))

    def run(self, task: dict[str, int], bias: ctypes.c_void_p | None, channel: int, add: bool) -> None:
        """Convolve."""
        weights = _pointer(self.values[channel // self.values.shape[3] :])
        memory = BUFFERS.transforms.take(self.library.glc_floats(_TILES, self.in_channels), torch.float32)
        given = ctypes.byref(ConvTask(**task))
        self.library.glc_convolve(given, weights, bias, int(add), _TILES, _pointer(memory))


def normalizes(x: Tensor) -> bool:
    """Whether `normalize` accepts a map."""
    return x.dtype == torch.float32 and x.shape[1] % CHANNELS == 0


def normalize(library: ctypes.CDLL, x: Tensor, scale: Tensor, shift: Tensor, swish: bool) -> Tensor:
    """Return x * scale + shift, optionally followed by swish, valid until this thread's next call.

    Args:
        x: `[1, C, H, W]`, float32, channels-last, C a multiple of `CHANNELS`.
        scale: `[C]`, float32.
        shift: `[C]`, float32.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = x.shape
    out = BUFFERS.normalized.map(channels, height, width, x.dtype)
    library.glc_normalize(
        _pointer(x), height * width, channels, _pointer(scale), _pointer(shift), int(swish), _pointer(out)
    )
    return out


def suits(conv: nn.Conv2d) -> bool:
    """Whether a convolution can be computed here, and faster."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == conv.padding == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.in_channels % CHANNELS == conv.out_channels % CHANNELS == 0
        and min(conv.in_channels, conv.out_channels) >= 2 * CHANNELS
    )


def library() -> ctypes.CDLL | None:
    """Return the library of winograd.c, or None if it cannot be compiled or fails its self-test."""
    return NATIVE.library()


def _declare(library: ctypes.CDLL) -> None:
    int64, address = ctypes.c_int64, ctypes.c_void_p
    library.glc_wide.restype = library.glc_floats.restype = library.glc_sizeof_conv_task.restype = int64
    library.glc_floats.argtypes = (int64, int64)
    library.glc_weights.argtypes = (address, address, int64, int64, int64, int64, address)
    library.glc_convolve.argtypes = (address, address, address, ctypes.c_int, int64, address)
    library.glc_normalize.argtypes = (address, int64, int64, address, address, ctypes.c_int, address)
    library.glc_weights.restype = library.glc_convolve.restype = library.glc_normalize.restype = None


def _self_test(library: ctypes.CDLL) -> bool:
    if library.glc_sizeof_conv_task() != ctypes.sizeof(ConvTask):
        return False
    with torch.inference_mode(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
        return _equals_pytorch(library)


def _equals_pytorch(library: ctypes.CDLL) -> bool:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    state = torch.get_rng_state()  # restored below; skip_init would avoid this but imports 500 modules
    conv = nn.Conv2d(32, 112, 3, padding=1, dtype=torch.float32, device="cpu")
    torch.set_rng_state(state)
    for parameter in conv.parameters():
        parameter.copy_(noise(*parameter.shape))
    x = noise(1, 32, 9, 20).contiguous(memory_format=torch.channels_last)
    scale, shift = noise(32), noise(32)
    found = normalize(library, x, scale, shift, swish=True)
    expected = F.silu(x * scale[:, None, None] + shift[:, None, None])
    if not torch.allclose(found, expected, rtol=0, atol=1e-4):
        return False
    for doubles in (False, True):
        given = F.interpolate(x, scale_factor=2.0) if doubles else x
        expected = F.conv2d(given, conv.weight, conv.bias, padding=1)
        out = torch.ones_like(expected).contiguous(memory_format=torch.channels_last)
        weights = TransformedWeights(conv, library, Workers(), doubles)
        weights.convolve(x, 0, 9, 0, out[:, :CHANNEL_BLOCK], 0, add=False)
        weights.convolve(x, 0, 9, 0, out[:, CHANNEL_BLOCK:], CHANNEL_BLOCK, add=True)
        expected[:, CHANNEL_BLOCK:] += 1
        if not torch.allclose(out, expected, rtol=0, atol=1e-2):
            return False
    return True


NATIVE = Native(Path(__file__).with_suffix(".c"), _declare, _self_test)
