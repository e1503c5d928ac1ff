"""Layers of the integer networks in 16-bit and 32-bit integers, if a C compiler is available.

`integer_kernels.c` beside this file computes them (`glc.codec.native`), about twice as fast as float64. The
results equal those of the layers of `glc.codec.entropy.integer_nets` bit for bit. If a weight or an
activation is too large for these kernels, they return None and the layers run in float64.
"""

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glc.codec.native import Native, pointer

_UNITS = 1 << 14
"""Units of weights per 1."""
_MAX_WEIGHT = (1 << 15) - 1
"""Largest magnitude of a weight, in units."""
_ROW_LIMIT = 1 << 20
"""The sum of magnitudes over a row of weights must be less: times 2^11 it fits 32 bits."""


class Pointwise(NamedTuple):
    """A 1x1 convolution."""

    weight: Tensor
    """`[out_channels, in_channels]`, float32 or float64; rounded to the weights' grid when packed."""
    bias: Tensor
    """`[out_channels]`, float64, contiguous, in units of activations."""
    max_high: int
    """Largest upper half of an activation for which the sums fit 32 bits; -1 if the weights are too large."""


class _Layer(ctypes.Structure):
    """Mirror of `struct layer` of integer_kernels.c."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out_channels", ctypes.c_int64),
        ("in_channels", ctypes.c_int64),
        ("max_high", ctypes.c_int64),
    )


class _Task(ctypes.Structure):
    """Mirror of `struct task` of integer_kernels.c."""

    _fields_ = (
        ("first", _Layer),
        ("second", _Layer),
        ("gated", ctypes.c_int),
        ("x", ctypes.c_void_p),
        ("units", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_units", ctypes.c_void_p),
        ("added", ctypes.c_void_p),
        ("positions", ctypes.c_int64),
        ("slope", ctypes.c_double),
        ("threads", ctypes.c_int64),
        ("next", ctypes.c_int64),
        ("failed", ctypes.c_int),
    )


class _Planes(ctypes.Structure):
    """Mirror of `struct planes` of integer_kernels.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("channels", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("side", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("next", ctypes.c_int64),
        ("failed", ctypes.c_int),
    )


def max_high(weight: Tensor) -> int:
    """Return `Pointwise.max_high` of weights on their grid, `[out_channels, in_channels]`."""
    sizes = weight.abs() * _UNITS
    row = int(sizes.sum(1).max())
    return (
        -1 if sizes.max() > _MAX_WEIGHT or row >= _ROW_LIMIT else min(((1 << 31) - 1) // max(1, row), 1 << 15)
    )


def supports(x: Tensor) -> bool:
    """Whether the kernels can run on a map `[B, C, H, W]`."""
    plain = type(x) is Tensor and x.device.type == "cpu" and not x.requires_grad and not x.is_neg()
    return plain and x.ndim == 4 and x.numel() > 0 and NATIVE.library() is not None


def pointwise(x: Tensor, layer: Pointwise) -> Tensor | None:
    """Compute a 1x1 convolution like `IntegerConv2d`.

    Args:
        x: `[B, in_channels, H, W]`, of any floating-point type; `supports(x)` must hold.

    Returns:
        `[B, out_channels, H, W]`, float64; None if a value is too large.
    """
    out = torch.empty((len(x), len(layer.bias), *x.shape[2:]), dtype=torch.float64, device="cpu")
    return out if _run(_library(), _values(x), out, layer) else None


def feed_forward(x: Tensor, expand: Pointwise, project: Pointwise, slope: float) -> Tensor | None:
    """Compute a `GatedFeedForward`; x and result as for `pointwise`.

    Args:
        x: `[B, C, H, W]`.
        expand: from C channels to two halves, of which the second gates the first.
        project: from one half to C.
        slope: of the gates' leaky rectifier, on the weights' grid.
    """
    x = _values(x)
    out = torch.empty_like(x)
    return out if _run(_library(), x, out, expand, project, slope=slope, added=x) else None


def depth_conv(
    x: Tensor,
    mix: Pointwise,
    slope: float,
    depthwise: Tensor,
    bias: Tensor,
    project: Pointwise,
    added: Tensor,
) -> Tensor | None:
    """Compute a `DepthConv`; x and result as for `pointwise`.

    Args:
        x: `[B, C, H, W]`.
        mix: from C to C channels.
        slope: of the leaky rectifier after it, on the weights' grid.
        depthwise: weights of the depth-wise convolution, float64 `[taps, C, 1]`.
        bias: its bias, `[C, 1]`, float64, in units of activations.
        project: from C channels to those of the output.
        added: the residual, added to the output.
    """
    if depthwise.shape[1:] != (x.shape[1], 1):
        return None
    mixed = torch.empty(x.shape, dtype=torch.int32, device="cpu")
    if not _run(_library(), _values(x), mixed, mix, slope=slope):
        return None
    summed = torch.empty_like(mixed)
    if not _run_planes(_library(), mixed, summed, depthwise.contiguous(), bias.contiguous()):
        return None
    out = torch.empty((len(x), len(project.bias), *x.shape[2:]), dtype=torch.float64, device="cpu")
    return out if _run(_library(), summed, out, project, added=_values(added)) else None


def _library() -> ctypes.CDLL:
    library = NATIVE.library()
    assert library is not None, "supports() must be checked first"
    return library


def _values(x: Tensor) -> Tensor:
    return x.to(dtype=torch.float64, memory_format=torch.contiguous_format).contiguous()


def _run(
    library: ctypes.CDLL,
    x: Tensor,
    out: Tensor,
    first: Pointwise,
    second: Pointwise | None = None,
    slope: float = 1.0,
    added: Tensor | None = None,
) -> bool:
    """Run a task of integer_kernels.c for each image; return whether the output is valid.

    Args:
        x: contiguous; values in float64 or units in int32.
        out: contiguous; values in float64 or units in int32.
        first: the layer, or the expansion of a feed-forward layer.
        second: the projection of a feed-forward layer.
        slope: of the leaky rectifier of an int32 output, or of the gates.
        added: float64, added to a float64 output, of its shape.
    """
    last = first if second is None else second
    if first.max_high < 0 or last.max_high < 0:
        return False
    # Shapes that do not match: the float64 path raises PyTorch's error.
    out_channels, in_channels = first.weight.shape
    if (
        x.shape[1] != in_channels
        or out.shape[1] != len(last.weight)
        or (added is not None and added.shape != out.shape)
    ):
        return False
    if second is not None and out_channels != 2 * second.weight.shape[1]:
        return False
    packed = [_pack(library, layer) for layer in (first, second) if layer is not None]
    for i in range(len(x)):
        task = _Task(gated=second is not None, slope=slope, threads=torch.get_num_threads())
        task.positions = x[i, 0].numel()
        task.first = _layer(first, packed[0])
        if second is not None:
            task.second = _layer(second, packed[1])
        setattr(task, "units" if x.dtype == torch.int32 else "x", x[i].data_ptr())
        setattr(task, "out_units" if out.dtype == torch.int32 else "out", out[i].data_ptr())
        if added is not None:
            task.added = added[i].data_ptr()
        if library.glc_layers(ctypes.byref(task)):
            return False
    return True


def _pack(library: ctypes.CDLL, layer: Pointwise) -> Tensor:
    """Return the weights in the layout of the kernels."""
    out_channels, in_channels = layer.weight.shape
    packed = torch.empty(library.glc_size(out_channels, in_channels), dtype=torch.int16, device="cpu")
    weight = layer.weight.contiguous()
    if weight.dtype == torch.float64:
        library.glc_weights_of_doubles(pointer(weight), out_channels, in_channels, pointer(packed))
    else:
        weight = weight.float()
        library.glc_weights_of_floats(pointer(weight), out_channels, in_channels, pointer(packed))
    return packed


def _layer(layer: Pointwise, packed: Tensor) -> _Layer:
    out_channels, in_channels = layer.weight.shape
    return _Layer(packed.data_ptr(), layer.bias.data_ptr(), out_channels, in_channels, layer.max_high)


def _run_planes(library: ctypes.CDLL, x: Tensor, out: Tensor, weights: Tensor, bias: Tensor) -> bool:
    """Compute a depth-wise convolution of units, int32 `[B, C, H, W]`; return whether the output is valid."""
    for image, target in zip(x, out, strict=True):
        channels, height, width = image.shape
        planes = _Planes(image.data_ptr(), target.data_ptr(), weights.data_ptr(), bias.data_ptr())
        planes.channels, planes.height, planes.width = channels, height, width
        planes.side, planes.threads = round(len(weights) ** 0.5), torch.get_num_threads()
        if library.glc_planes(ctypes.byref(planes)):
            return False
    return True


def _declare(library: ctypes.CDLL) -> None:
    int64, address = ctypes.c_int64, ctypes.c_void_p
    library.glc_size.argtypes, library.glc_size.restype = (int64, int64), int64
    for name in ("glc_weights_of_floats", "glc_weights_of_doubles"):
        getattr(library, name).argtypes = (address, int64, int64, address)
        getattr(library, name).restype = None
    library.glc_layers.argtypes = library.glc_planes.argtypes = (address,)
    library.glc_sizeof_task.restype = library.glc_sizeof_planes.restype = int64
    library.glc_layers.restype = library.glc_planes.restype = ctypes.c_int


def _self_test(library: ctypes.CDLL) -> bool:
    """Compare with 64-bit integers: the largest sums allowed, sums that saturate, sums that end in halves."""
    if (library.glc_sizeof_task(), library.glc_sizeof_planes()) != (
        ctypes.sizeof(_Task),
        ctypes.sizeof(_Planes),
    ):
        return False
    generator = torch.Generator().manual_seed(0)

    def integers(limit: int, *shape: int) -> Tensor:
        return torch.randint(-limit, limit + 1, shape, generator=generator, device="cpu")

    def layer(weight: Tensor, bias: Tensor) -> Pointwise:
        on_grid = weight.double() / _UNITS
        return Pointwise(on_grid, bias.double() / _UNITS, max_high(on_grid))

    in_channels, half = 33, 9  # not multiples of the block sizes; nor are 3 * 23 positions
    for row, limit in ((_ROW_LIMIT - 1, 1 << 22), (1 << 17, 1 << 25), (1 << 14, 1 << 27), (40, 1 << 12)):
        x, bias = integers(limit, 1, in_channels, 3, 23), integers(1 << 28, 2 * half)
        added = integers(1 << 30, 1, half, 3, 23).double() / (1 << 26)
        weight, narrow = (
            integers(row // in_channels, 2 * half, in_channels),
            integers(row // (32 * half), half, half),
        )
        weight[0] = torch.tensor(row // in_channels) * x[0, :, 1, 1].sign()  # all of one sign
        wide = _to_activations(weight @ x.clamp(-_TOP, _TOP).flatten(2) + bias[:, None], 14)
        value, gate = wide.chunk(2, 1)
        gated = torch.where(
            gate < 0, _to_activations(value * gate * 1638, 26), _to_activations(value * gate, 12)
        )
        sums = _to_activations(narrow @ gated + bias[:half, None], 14)
        expected = sums.double().view_as(added) / 4096 + added
        first, second = layer(weight, bias), layer(narrow, bias[:half])
        first = first._replace(weight=first.weight.float())  # as in weights files
        out = torch.empty_like(expected)
        given = (x.double() / 4096, out, first, second, 1638 / _UNITS, added)
        if not _run(library, *given) or not torch.equal(out, expected):
            return False
        units = torch.empty((1, 2 * half, 3, 23), dtype=torch.int32, device="cpu")
        if not _run(library, x.clamp(-_TOP, _TOP).int(), units, first, slope=164 / _UNITS):
            return False
        leaky = torch.where(wide < 0, _to_activations(wide * 164, 14), wide).view_as(units)
        taps = integers(row // 9, 9, 2 * half)
        planes = torch.empty_like(units)
        if not _run_planes(library, units, planes, taps.double()[..., None] / _UNITS, bias.double() / _UNITS):
            return False
        kernel = taps.T.reshape(2 * half, 3, 3).double()
        padded = F.pad(leaky.double(), (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        sums = (padded * kernel[:, None, None]).sum((-1, -2)).long() + bias[:, None, None]
        if not torch.equal(units, leaky.int()) or not torch.equal(planes, _to_activations(sums, 14).int()):
            return False
    # An activation too large for these weights must be refused.
    first = layer(torch.full((1, 1), (1 << 15) - 1).expand(1, 31), torch.zeros(1))
    return not _run(
        library, torch.full((1, 31, 1, 1), 16000.0).double(), torch.empty(1, 1, 1, 1).double(), first
    )


_TOP = 1 << 26


def _to_activations(sums: Tensor, bits: int) -> Tensor:
    """Return sums / 2^bits as activations: rounded, halves to even, and clamped."""
    return (sums + (1 << (bits - 1)) - 1 + (sums >> bits & 1) >> bits).clamp(-_TOP, _TOP)


NATIVE = Native(Path(__file__).with_suffix(".c"), _declare, _self_test)
