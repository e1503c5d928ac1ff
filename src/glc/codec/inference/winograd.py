"""3x3 convolutions in float32 with a fifth of the multiplications, where a C compiler is at hand.

`winograd.c` beside this file is compiled for this processor when it is first needed, in less than a second,
and kept in PyTorch's folder of downloads (`torch.hub.get_dir()`). Without a compiler, or with `GLC_NATIVE=0`
in the environment, PyTorch's own convolutions run instead: results differ by rounding, some 110 dB below the
signal, and what is exact in this codec does not come here.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.inference.workers import Workers

SWITCH = "GLC_NATIVE"
"""Environment variable: 0 to do without what is compiled."""
TILE = 6
"""Rows and columns of outputs that are computed together."""
CHANNELS = 16
"""Numbers of channels must be multiples of it: the longest vector of any processor."""
PART = 64
"""Channels of the output can be computed by themselves from multiples of it on."""

_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-O3", "-shared", "-fPIC", "-fno-math-errno", "-ffp-contract=fast")
_SECONDS = 60
_TILES = 24
"""Tiles whose transforms are held at a time: more stay in no cache, with fewer the weights are read more
often. A multiple of ROWS of winograd.c."""


class _Band(ctypes.Structure):
    """`struct band` of winograd.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("first", ctypes.c_long),
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


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


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
        self.values = workers.memory(blocks * 64 * self.ins * wide).view(blocks, 64, self.ins, wide)
        strides = (ctypes.c_long * 4)(*weight.stride())

        def transform(block: int) -> None:
            to = _pointer(self.values)
            library.glc_weights(_pointer(weight), strides, self.outs, self.ins, block, block + 1, to)

        workers.map(transform, range(blocks))

    def convolve(
        self, x: Tensor, first: int, height: int, start: int, out: Tensor, part: int, add: bool
    ) -> None:
        """Write rows of the output.

        Args:
            x: the input's rows from `first` on, `[1, C, rows, W]`, float32, channels-last.
            first: number of the first of them.
            height: rows of the whole input; it is surrounded by zeros.
            start: number of the first row of the output to write.
            out: `[1, channels, rows, W]`, float32, its channels side by side in memory.
            part: first of these channels, a multiple of `PART`.
            add: to what is there, instead of setting it.
        """
        halves = int(self.doubles)
        if x.stride()[1:] != (1, x.shape[3] * self.ins, self.ins):
            x = x.contiguous(memory_format=torch.channels_last)
        band = _Band(
            x=x.data_ptr(),
            first=first,
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
        bias = None if self.bias is None else _pointer(self.bias[part:])
        memory = torch.empty(self.library.glc_floats(_TILES, self.ins))
        self.library.glc_convolve(
            ctypes.byref(band), _pointer(weights), bias, int(add), _TILES, _pointer(memory)
        )


def normalizes(x: Tensor) -> bool:
    """Whether `normalize` takes a map."""
    return x.dtype == torch.float32 and x.shape[1] % CHANNELS == 0


def normalize(made: ctypes.CDLL, x: Tensor, scale: Tensor, shift: Tensor, swish: bool) -> Tensor:
    """Return x * scale + shift, and swish of it where that is wanted, as a new tensor.

    Args:
        made: what `library` returned.
        x: `[1, C, H, W]`, float32, channels-last, C a multiple of `CHANNELS`.
        scale: `[C]`, float32.
        shift: likewise.
        swish: whether it follows.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    pixels = x.shape[2] * x.shape[3]
    made.glc_normalize(
        _pointer(x), pixels, x.shape[1], _pointer(scale), _pointer(shift), int(swish), _pointer(out)
    )
    return out


def suits(conv: nn.Conv2d) -> bool:
    """Whether a convolution can be computed here, and gains by it."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.groups == 1
        and conv.in_channels % CHANNELS == conv.out_channels % CHANNELS == 0
        and min(conv.in_channels, conv.out_channels) >= 2 * CHANNELS
    )


@cache
def library() -> ctypes.CDLL | None:
    """Return what winograd.c compiles to, or None where it cannot be had or computes something else."""
    if os.environ.get(SWITCH) == "0":
        return None
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or ""]
    if not compiler[0]:
        return None
    try:
        made = _built(compiler)
    except (OSError, subprocess.SubprocessError):
        return None
    return made if _computes(made) else None


def _built(compiler: list[str]) -> ctypes.CDLL:
    # For this very processor: a folder may be shared by machines.
    told = (_SOURCE.read_bytes(), _FLAGS, compiler, platform.machine(), _processor())
    name = f"winograd-{hashlib.sha256(repr(told).encode()).hexdigest()[:16]}.so"
    folder = Path(torch.hub.get_dir()) / "glc"
    target = folder / name
    if target.is_file():
        with suppress(OSError):
            return _load(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            os.replace(_compiled(compiler, Path(made)), target)
        return _load(target)
    except OSError:
        # A folder that nothing may be written to or run from. What is loaded stays when its file is gone.
        with tempfile.TemporaryDirectory(prefix="glc-") as made:
            return _load(_compiled(compiler, Path(made)))


def _compiled(compiler: list[str], folder: Path) -> Path:
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    made = folder / "winograd.so"
    command = [*compiler, *_FLAGS, native, "-o", str(made), str(_SOURCE)]
    subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
    return made


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "CPU part", "Features")
    return "\n".join(line for line in text.split("\n\n")[0].splitlines() if line.startswith(told))


def _load(path: Path) -> ctypes.CDLL:
    made = ctypes.CDLL(str(path))
    long, pointer = ctypes.c_long, ctypes.c_void_p
    made.glc_wide.restype = made.glc_floats.restype = long
    made.glc_floats.argtypes = (long, long)
    made.glc_weights.argtypes = (pointer, pointer, long, long, long, long, pointer)
    made.glc_convolve.argtypes = (pointer, pointer, pointer, ctypes.c_int, long, pointer)
    made.glc_normalize.argtypes = (pointer, long, long, pointer, pointer, ctypes.c_int, pointer)
    made.glc_weights.restype = made.glc_convolve.restype = made.glc_normalize.restype = None
    return made


def _computes(made: ctypes.CDLL) -> bool:
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        conv = nn.Conv2d(32, 48, 3, padding=1)
        for parameter in conv.parameters():
            parameter.normal_(generator=generator)
        x = torch.randn(1, 32, 9, 20, generator=generator).contiguous(memory_format=torch.channels_last)
        found = torch.empty(1, 48, 9, 20, memory_format=torch.channels_last)
        TransformedWeights(conv, made, Workers()).convolve(x, 0, 9, 0, found, 0, add=False)
        return torch.allclose(found, F.conv2d(x, conv.weight, conv.bias, padding=1), rtol=0, atol=1e-2)
