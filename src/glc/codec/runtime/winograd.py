"""3x3 convolutions in float32 with a fifth of the multiplications, where a C compiler is at hand.

`winograd.c` beside this file computes them (`glc.codec.native`). Without it PyTorch's own convolutions run
instead: results differ by rounding, some 110 dB below the signal, and what is exact in this codec does not
come here.
"""

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.native import Native, pointer
from glc.codec.runtime.threads import BUFFERS, Workers

WINOGRAD_TILE = 6
"""Rows and columns of outputs that are computed together."""
CHANNELS = 16
"""Numbers of channels must be multiples of it: the longest vector of any processor."""
CHANNEL_BLOCK = 64
"""Channels of the output can be computed by themselves from multiples of it on."""

_TILES = 24
"""Tiles whose transforms are held at a time: more stay in no cache, with fewer the weights are read more
often. A multiple of ROWS of winograd.c."""


class _RowTile(ctypes.Structure):
    """`struct row_tile` of winograd.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("first", ctypes.c_long),
        ("given", ctypes.c_long),
        ("height", ctypes.c_long),
        ("width", ctypes.c_long),
        ("halves", ctypes.c_long),
        ("ins", ctypes.c_long),
        ("start", ctypes.c_long),
        ("rows", ctypes.c_long),
        ("out", ctypes.c_void_p),
        ("row", ctypes.c_long),
        ("pixel", ctypes.c_long),
        ("outs", ctypes.c_long),
    )


class TransformedWeights:
    """The weights of a 3x3 convolution as they are multiplied: seven times as many as its own.

    Args:
        conv: the convolution; only where `suits`.
        library: what `library` returned.
        workers: who transforms them, and whose memory they take until the next convolution asks for it.
        doubles: whether each of its inputs stands for two by two (`Upsample`).
    """

    def __init__(
        self, conv: nn.Conv2d, library: ctypes.CDLL, workers: Workers, doubles: bool = False
    ) -> None:
        weight = conv.weight.detach().float()
        self.outs, self.ins = weight.shape[:2]
        self.library, self.doubles = library, doubles
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        wide = library.glc_wide()
        blocks = -(-self.outs // wide)
        self.values = workers.scratch.take(blocks * 64 * self.ins * wide, torch.float32)
        self.values = self.values.view(blocks, 64, self.ins, wide)
        strides = (ctypes.c_long * 4)(*weight.stride())

        def transform(block: int) -> None:
            to = pointer(self.values)
            library.glc_weights(pointer(weight), strides, self.outs, self.ins, block, block + 1, to)

        workers.map(transform, range(blocks))

    def convolve(
        self, x: Tensor, first: int, height: int, start: int, out: Tensor, part: int, add: bool
    ) -> None:
        """Write rows of the output.

        Args:
            x: the input's rows from `first` on, `[1, C, rows, W]`, float32, channels-last: from the one above
                the first of the output to the one below its last, as far as there are such.
            first: number of the first of them.
            height: rows of the whole input; it is surrounded by zeros.
            start: number of the first row of the output to write.
            out: `[1, channels, rows, W]`, float32, its channels side by side in memory.
            part: first of these channels, a multiple of `CHANNEL_BLOCK`.
            add: to what is there, instead of setting it.
        """
        halves = int(self.doubles)
        if x.stride()[1:] != (1, x.shape[3] * self.ins, self.ins):
            x = x.contiguous(memory_format=torch.channels_last)
        tile = _RowTile(
            x=x.data_ptr(),
            first=first,
            given=x.shape[2],
            height=height << halves,
            width=x.shape[3] << halves,
            halves=halves,
            ins=self.ins,
            start=start,
            rows=out.shape[2],
            out=out.data_ptr(),
            row=out.stride(2),
            pixel=out.stride(3),
            outs=out.shape[1],
        )
        weights = self.values[part // self.values.shape[3] :]
        bias = None if self.bias is None else pointer(self.bias[part:])
        memory = BUFFERS.transforms.take(self.library.glc_floats(_TILES, self.ins), torch.float32)
        self.library.glc_convolve(
            ctypes.byref(tile), pointer(weights), bias, int(add), _TILES, pointer(memory)
        )


def normalizes(x: Tensor) -> bool:
    """Whether `normalize` takes a map."""
    return x.dtype == torch.float32 and x.shape[1] % CHANNELS == 0


def normalize(made: ctypes.CDLL, x: Tensor, scale: Tensor, shift: Tensor, swish: bool) -> Tensor:
    """Return x * scale + shift, and swish of it where that is wanted.

    It stays until this thread asks for the next.

    Args:
        made: what `library` returned.
        x: `[1, C, H, W]`, float32, channels-last, C a multiple of `CHANNELS`.
        scale: `[C]`, float32.
        shift: likewise.
        swish: whether it follows.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = x.shape
    out = BUFFERS.normalized.map(channels, height, width, x.dtype)
    made.glc_normalize(
        pointer(x), height * width, channels, pointer(scale), pointer(shift), int(swish), pointer(out)
    )
    return out


def suits(conv: nn.Conv2d) -> bool:
    """Whether a convolution can be computed here, and gains by it."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == conv.padding == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.in_channels % CHANNELS == conv.out_channels % CHANNELS == 0
        and min(conv.in_channels, conv.out_channels) >= 2 * CHANNELS
    )


def library() -> ctypes.CDLL | None:
    """Return what winograd.c compiles to, or None where it cannot be had or computes something else."""
    return NATIVE.library()


def _declare(made: ctypes.CDLL) -> None:
    long, address = ctypes.c_long, ctypes.c_void_p
    made.glc_wide.restype = made.glc_floats.restype = made.glc_sizeof_row_tile.restype = long
    made.glc_floats.argtypes = (long, long)
    made.glc_weights.argtypes = (address, address, long, long, long, long, address)
    made.glc_convolve.argtypes = (address, address, address, ctypes.c_int, long, address)
    made.glc_normalize.argtypes = (address, long, long, address, address, ctypes.c_int, address)
    made.glc_weights.restype = made.glc_convolve.restype = made.glc_normalize.restype = None


def _computes(made: ctypes.CDLL) -> bool:
    if made.glc_sizeof_row_tile() != ctypes.sizeof(_RowTile):
        return False
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    state = torch.get_rng_state()  # skip_init would leave it alone, and import 500 modules
    conv = nn.Conv2d(32, 112, 3, padding=1, dtype=torch.float32, device="cpu")
    torch.set_rng_state(state)
    for parameter in conv.parameters():
        parameter.copy_(noise(*parameter.shape))
    x = noise(1, 32, 9, 20).contiguous(memory_format=torch.channels_last)
    scale, shift = noise(32), noise(32)
    found = normalize(made, x, scale, shift, swish=True)
    expected = F.silu(x * scale[:, None, None] + shift[:, None, None])
    if not torch.allclose(found, expected, rtol=0, atol=1e-4):
        return False
    for doubles in (False, True):
        given = F.interpolate(x, scale_factor=2.0) if doubles else x
        expected = F.conv2d(given, conv.weight, conv.bias, padding=1)
        out = torch.ones_like(expected).contiguous(memory_format=torch.channels_last)
        weights = TransformedWeights(conv, made, Workers(), doubles)
        weights.convolve(x, 0, 9, 0, out[:, :CHANNEL_BLOCK], 0, add=False)
        weights.convolve(x, 0, 9, 0, out[:, CHANNEL_BLOCK:], CHANNEL_BLOCK, add=True)
        expected[:, CHANNEL_BLOCK:] += 1
        if not torch.allclose(out, expected, rtol=0, atol=1e-2):
            return False
    return True


NATIVE = Native(Path(__file__).with_suffix(".c"), _declare, _computes)
