"""Layers of the integer networks in integers of 16 and 32 bits, where a C compiler is at hand.

`integer_kernels.c` beside this file computes them (`glc.codec.native`), twice as fast as float64 could. What
it returns equals, bit for bit, what the layers of `glc.codec.entropy.integer_nets` compute without it; where
an activation or a weight is too large for it, it returns nothing, and they compute it themselves.
"""

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glc.codec.native import Native, pointer

_UNITS = 1 << 14
"""Of weights, in 1."""
_LARGEST = (1 << 15) - 1
"""Of a weight, in units."""
_ROW = 1 << 20
"""More than the magnitudes of a row of weights come to: times 2^11 they fit 32 bits."""


class Pointwise(NamedTuple):
    """A convolution of 1x1."""

    weight: Tensor
    """`[outs, ins]`, float32 or float64; it is rounded to its grid, again."""
    bias: Tensor
    """`[outs]`, float64, contiguous, in units of activations."""
    max_high: int
    """Largest upper half of an activation for which sums fit; -1 where weights are too large."""


class _Layer(ctypes.Structure):
    """`struct layer` of integer_kernels.c."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out_channels", ctypes.c_long),
        ("in_channels", ctypes.c_long),
        ("max_high", ctypes.c_long),
    )


class _Task(ctypes.Structure):
    """`struct task` of integer_kernels.c."""

    _fields_ = (
        ("first", _Layer),
        ("second", _Layer),
        ("gated", ctypes.c_int),
        ("x", ctypes.c_void_p),
        ("units", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_units", ctypes.c_void_p),
        ("added", ctypes.c_void_p),
        ("positions", ctypes.c_long),
        ("slope", ctypes.c_double),
        ("threads", ctypes.c_long),
        ("next", ctypes.c_long),
        ("failed", ctypes.c_int),
    )


class _Planes(ctypes.Structure):
    """`struct planes` of integer_kernels.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("channels", ctypes.c_long),
        ("height", ctypes.c_long),
        ("width", ctypes.c_long),
        ("side", ctypes.c_long),
        ("threads", ctypes.c_long),
        ("next", ctypes.c_long),
        ("failed", ctypes.c_int),
    )


def max_high(weight: Tensor) -> int:
    """Return `Pointwise.max_high` of weights on their grid, `[outs, ins]`."""
    sizes = weight.abs() * _UNITS
    row = int(sizes.sum(1).max())
    return -1 if sizes.max() > _LARGEST or row >= _ROW else min(((1 << 31) - 1) // max(1, row), 1 << 15)


def takes(x: Tensor) -> bool:
    """Whether layers of a map `[B, C, H, W]` can be computed here."""
    plain = type(x) is Tensor and x.device.type == "cpu" and not x.requires_grad and not x.is_neg()
    return plain and x.ndim == 4 and x.numel() > 0 and NATIVE.library() is not None


def pointwise(x: Tensor, layer: Pointwise) -> Tensor | None:
    """Return a convolution of 1x1, as `IntegerConv2d`.

    Args:
        x: `[B, ins, H, W]`, of any floating-point type; only what `takes` accepts.
        layer: the convolution.

    Returns:
        `[B, outs, H, W]`, float64; None where something was too large.
    """
    out = torch.empty((len(x), len(layer.bias), *x.shape[2:]), dtype=torch.float64, device="cpu")
    return out if _run(_made(), _values(x), out, layer) else None


def feed_forward(x: Tensor, expand: Pointwise, project: Pointwise, slope: float) -> Tensor | None:
    """Return a `GatedFeedForward`; x and result as of `pointwise`.

    Args:
        x: `[B, C, H, W]`.
        expand: from C channels to two halves, the second of which gates the first.
        project: from one half to C.
        slope: of the gates' rectifier, on the weights' grid.
    """
    x = _values(x)
    out = torch.empty_like(x)
    return out if _run(_made(), x, out, expand, project, slope=slope, added=x) else None


def depth_conv(
    x: Tensor,
    mix: Pointwise,
    slope: float,
    depthwise: Tensor,
    bias: Tensor,
    project: Pointwise,
    added: Tensor,
) -> Tensor | None:
    """Return a `DepthConv`; x and result as of `pointwise`.

    Args:
        x: `[B, C, H, W]`.
        mix: from C to C channels.
        slope: of the rectifier after it, on the weights' grid.
        depthwise: weights of each channel's own convolution, float64 `[taps, C, 1]`.
        bias: its bias, `[C, 1]`, float64, in units of activations.
        project: from C channels to those of the output.
        added: what goes past them to the output.
    """
    if depthwise.shape[1:] != (x.shape[1], 1):
        return None
    mixed = torch.empty(x.shape, dtype=torch.int32, device="cpu")
    if not _run(_made(), _values(x), mixed, mix, slope=slope):
        return None
    summed = torch.empty_like(mixed)
    if not _run_planes(_made(), mixed, summed, depthwise.contiguous(), bias.contiguous()):
        return None
    out = torch.empty((len(x), len(project.bias), *x.shape[2:]), dtype=torch.float64, device="cpu")
    return out if _run(_made(), summed, out, project, added=_values(added)) else None


def _made() -> ctypes.CDLL:
    made = NATIVE.library()
    assert made is not None, "takes() was not asked"
    return made


def _values(x: Tensor) -> Tensor:
    return x.to(dtype=torch.float64, memory_format=torch.contiguous_format).contiguous()


def _run(
    made: ctypes.CDLL,
    x: Tensor,
    out: Tensor,
    first: Pointwise,
    second: Pointwise | None = None,
    slope: float = 1.0,
    added: Tensor | None = None,
) -> bool:
    """Compute a task of integer_kernels.c for each image; return whether the output counts.

    Args:
        made: what integer_kernels.c compiles to.
        x: contiguous, values in float64 or units in int32.
        out: likewise.
        first: a layer.
        second: the layer after it, if its results gate each other.
        slope: of a rectifier of an output in units, or of the gates.
        added: to an output in values, of its shape.
    """
    last = first if second is None else second
    if first.max_high < 0 or last.max_high < 0:
        return False
    # What does not fit together is for PyTorch to complain of.
    outs, ins = first.weight.shape
    if (
        x.shape[1] != ins
        or out.shape[1] != len(last.weight)
        or (added is not None and added.shape != out.shape)
    ):
        return False
    if second is not None and outs != 2 * second.weight.shape[1]:
        return False
    held = [_packed(made, layer) for layer in (first, second) if layer is not None]
    for i in range(len(x)):
        task = _Task(gated=second is not None, slope=slope, threads=torch.get_num_threads())
        task.positions = x[i, 0].numel()
        task.first = _layer(first, held[0])
        if second is not None:
            task.second = _layer(second, held[1])
        setattr(task, "units" if x.dtype == torch.int32 else "x", x[i].data_ptr())
        setattr(task, "out_units" if out.dtype == torch.int32 else "out", out[i].data_ptr())
        if added is not None:
            task.added = added[i].data_ptr()
        if made.glc_layers(ctypes.byref(task)):
            return False
    return True


def _packed(made: ctypes.CDLL, layer: Pointwise) -> Tensor:
    """Return weights as they are multiplied."""
    outs, ins = layer.weight.shape
    packed = torch.empty(made.glc_size(outs, ins), dtype=torch.int16, device="cpu")
    weight = layer.weight.contiguous()
    if weight.dtype == torch.float64:
        made.glc_weights_of_doubles(pointer(weight), outs, ins, pointer(packed))
    else:
        weight = weight.float()
        made.glc_weights_of_floats(pointer(weight), outs, ins, pointer(packed))
    return packed


def _layer(layer: Pointwise, packed: Tensor) -> _Layer:
    outs, ins = layer.weight.shape
    return _Layer(packed.data_ptr(), layer.bias.data_ptr(), outs, ins, layer.max_high)


def _run_planes(made: ctypes.CDLL, x: Tensor, out: Tensor, weights: Tensor, bias: Tensor) -> bool:
    """Compute a depth-wise convolution of units, int32 `[B, C, H, W]`; return whether the output counts."""
    for given, to in zip(x, out, strict=True):
        channels, height, width = given.shape
        planes = _Planes(given.data_ptr(), to.data_ptr(), weights.data_ptr(), bias.data_ptr())
        planes.channels, planes.height, planes.width = channels, height, width
        planes.side, planes.threads = round(len(weights) ** 0.5), torch.get_num_threads()
        if made.glc_planes(ctypes.byref(planes)):
            return False
    return True


def _declare(made: ctypes.CDLL) -> None:
    long, address = ctypes.c_long, ctypes.c_void_p
    made.glc_size.argtypes, made.glc_size.restype = (long, long), long
    for name in ("glc_weights_of_floats", "glc_weights_of_doubles"):
        getattr(made, name).argtypes = (address, long, long, address)
        getattr(made, name).restype = None
    made.glc_layers.argtypes = made.glc_planes.argtypes = (address,)
    made.glc_sizeof_task.restype = made.glc_sizeof_planes.restype = long
    made.glc_layers.restype = made.glc_planes.restype = ctypes.c_int


def _computes(made: ctypes.CDLL) -> bool:
    """Compare with 64-bit integers: sums as large as may be, sums that saturate, sums that end in halves."""
    if (made.glc_sizeof_task(), made.glc_sizeof_planes()) != (ctypes.sizeof(_Task), ctypes.sizeof(_Planes)):
        return False
    generator = torch.Generator().manual_seed(0)

    def whole(limit: int, *shape: int) -> Tensor:
        return torch.randint(-limit, limit + 1, shape, generator=generator, device="cpu")

    def layer(weight: Tensor, bias: Tensor) -> Pointwise:
        on_grid = weight.double() / _UNITS
        return Pointwise(on_grid, bias.double() / _UNITS, max_high(on_grid))

    ins, half = 33, 9  # no multiples of what is computed together, nor are 3 * 23 positions
    for row, limit in ((_ROW - 1, 1 << 22), (1 << 17, 1 << 25), (1 << 14, 1 << 27), (40, 1 << 12)):
        x, bias = whole(limit, 1, ins, 3, 23), whole(1 << 28, 2 * half)
        added = whole(1 << 30, 1, half, 3, 23).double() / (1 << 26)
        weight, narrow = whole(row // ins, 2 * half, ins), whole(row // (32 * half), half, half)
        weight[0] = torch.tensor(row // ins) * x[0, :, 1, 1].sign()  # all of one sign
        wide = _settled(weight @ x.clamp(-_TOP, _TOP).flatten(2) + bias[:, None], 14)
        value, gate = wide.chunk(2, 1)
        gated = torch.where(gate < 0, _settled(value * gate * 1638, 26), _settled(value * gate, 12))
        sums = _settled(narrow @ gated + bias[:half, None], 14)
        expected = sums.double().view_as(added) / 4096 + added
        first, second = layer(weight, bias), layer(narrow, bias[:half])
        first = first._replace(weight=first.weight.float())  # as files have them
        out = torch.empty_like(expected)
        given = (x.double() / 4096, out, first, second, 1638 / _UNITS, added)
        if not _run(made, *given) or not torch.equal(out, expected):
            return False
        units = torch.empty((1, 2 * half, 3, 23), dtype=torch.int32, device="cpu")
        if not _run(made, x.clamp(-_TOP, _TOP).int(), units, first, slope=164 / _UNITS):
            return False
        leaky = torch.where(wide < 0, _settled(wide * 164, 14), wide).view_as(units)
        taps = whole(row // 9, 9, 2 * half)
        planes = torch.empty_like(units)
        if not _run_planes(made, units, planes, taps.double()[..., None] / _UNITS, bias.double() / _UNITS):
            return False
        kernel = taps.T.reshape(2 * half, 3, 3).double()
        padded = F.pad(leaky.double(), (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        sums = (padded * kernel[:, None, None]).sum((-1, -2)).long() + bias[:, None, None]
        if not torch.equal(units, leaky.int()) or not torch.equal(planes, _settled(sums, 14).int()):
            return False
    # Too large for these weights: it must say so.
    first = layer(torch.full((1, 1), (1 << 15) - 1).expand(1, 31), torch.zeros(1))
    return not _run(
        made, torch.full((1, 31, 1, 1), 16000.0).double(), torch.empty(1, 1, 1, 1).double(), first
    )


_TOP = 1 << 26


def _settled(sums: Tensor, bits: int) -> Tensor:
    """Return whole numbers over 2^bits, rounded, halves to even, as activations."""
    return (sums + (1 << (bits - 1)) - 1 + (sums >> bits & 1) >> bits).clamp(-_TOP, _TOP)


NATIVE = Native(Path(__file__).with_suffix(".c"), _declare, _computes)
