"""Layers of the integer networks in 16-bit and 32-bit integers, if a C compiler is available.

`integer_kernels.c` beside this file computes them (`glc.codec.native`), about twice as fast as float64. The
results equal those of the layers of `glc.codec.entropy.integer_nets` bit for bit. If a weight or an
activation is too large for these kernels, they return None and the layers run in float64.

Maps are NumPy arrays `[B, C, H, W]` here; `Tensor.numpy()` shares the memory of a tensor.
"""

import ctypes
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glc.codec.native import Native, permits_amx

_UNITS = 1 << 14
"""Units of weights per 1."""
_MAX_WEIGHT = (1 << 15) - 1
"""Largest magnitude of a weight, in units."""
_ROW_LIMIT = 1 << 20
"""The sum of magnitudes over a row of weights must be less: times 2^11 it fits 32 bits."""


class Pointwise(NamedTuple):
    """A 1x1 convolution."""

    weight: np.ndarray
    """`[out_channels, in_channels]`, float32 or float64; rounded to the weights' grid when packed."""
    bias: np.ndarray
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


def max_high(weight: np.ndarray) -> int:
    """Return `Pointwise.max_high` of weights on their grid, `[out_channels, in_channels]`."""
    sizes = np.abs(weight) * _UNITS
    row = int(sizes.sum(1).max())
    return (
        -1 if sizes.max() > _MAX_WEIGHT or row >= _ROW_LIMIT else min(((1 << 31) - 1) // max(1, row), 1 << 15)
    )


def available() -> bool:
    """Whether the kernels can run here."""
    return NATIVE.library() is not None


def pointwise(x: np.ndarray, layer: Pointwise, threads: int) -> np.ndarray | None:
    """Compute a 1x1 convolution like `IntegerConv2d`.

    Args:
        x: `[B, in_channels, H, W]`, of any floating-point type; `available()` must hold.
        threads: number of threads to use.

    Returns:
        `[B, out_channels, H, W]`, float64; None if a value is too large.
    """
    out = np.empty((len(x), len(layer.bias), *x.shape[2:]))
    return out if _run(_library(), _values(x), out, layer, threads=threads) else None


def feed_forward(
    x: np.ndarray, expand: Pointwise, project: Pointwise, slope: float, threads: int
) -> np.ndarray | None:
    """Compute a `GatedFeedForward`; x and result as for `pointwise`.

    Args:
        x: `[B, C, H, W]`.
        expand: from C channels to two halves, of which the second gates the first.
        project: from one half to C.
        slope: of the gates' leaky rectifier, on the weights' grid.
        threads: number of threads to use.
    """
    x = _values(x)
    out = np.empty_like(x)
    done = _run(_library(), x, out, expand, project, slope=slope, added=x, threads=threads)
    return out if done else None


def depth_conv(
    x: np.ndarray,
    mix: Pointwise,
    slope: float,
    depthwise: np.ndarray,
    bias: np.ndarray,
    project: Pointwise,
    added: np.ndarray,
    threads: int,
) -> np.ndarray | None:
    """Compute a `DepthConv`; x and result as for `pointwise`.

    Args:
        x: `[B, C, H, W]`.
        mix: from C to C channels.
        slope: of the leaky rectifier after it, on the weights' grid.
        depthwise: weights of the depth-wise convolution, float64 `[taps, C, 1]`.
        bias: its bias, `[C, 1]`, float64, in units of activations.
        project: from C channels to those of the output.
        added: the residual, added to the output.
        threads: number of threads to use.
    """
    if depthwise.shape[1:] != (x.shape[1], 1):
        return None
    mixed = np.empty(x.shape, np.int32)
    if not _run(_library(), _values(x), mixed, mix, slope=slope, threads=threads):
        return None
    summed = np.empty_like(mixed)
    taps, bias = np.ascontiguousarray(depthwise), np.ascontiguousarray(bias)
    if not _run_planes(_library(), mixed, summed, taps, bias, threads):
        return None
    out = np.empty((len(x), len(project.bias), *x.shape[2:]))
    return out if _run(_library(), summed, out, project, added=_values(added), threads=threads) else None


def _library() -> ctypes.CDLL:
    library = NATIVE.library()
    assert library is not None, "available() must be checked first"
    return library


def _values(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float64)


def _run(
    library: ctypes.CDLL,
    x: np.ndarray,
    out: np.ndarray,
    first: Pointwise,
    second: Pointwise | None = None,
    slope: float = 1.0,
    added: np.ndarray | None = None,
    threads: int = 1,
) -> bool:
    """Run a task of integer_kernels.c for each image; return whether the output is valid.

    Args:
        x: contiguous; values in float64 or units in int32.
        out: contiguous; values in float64 or units in int32.
        first: the layer, or the expansion of a feed-forward layer.
        second: the projection of a feed-forward layer.
        slope: of the leaky rectifier of an int32 output, or of the gates.
        added: float64, added to a float64 output, of its shape.
        threads: number of threads to use.
    """
    last = first if second is None else second
    if first.max_high < 0 or last.max_high < 0:
        return False
    # Shapes that do not match: the float64 path raises the error.
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
    positions = x[0, 0].size
    products = positions * (first.weight.size + (0 if second is None else second.weight.size))
    threads = _useful(threads, products)
    for i in range(len(x)):
        task = _Task(gated=second is not None, slope=slope, threads=threads)
        task.positions = positions
        task.first = _layer(first, packed[0])
        if second is not None:
            task.second = _layer(second, packed[1])
        setattr(task, "units" if x.dtype == np.int32 else "x", x[i].ctypes.data)
        setattr(task, "out_units" if out.dtype == np.int32 else "out", out[i].ctypes.data)
        if added is not None:
            task.added = added[i].ctypes.data
        if library.glc_layers(ctypes.byref(task)):
            return False
    return True


def _useful(threads: int, products: int) -> int:
    """Return the number of threads that pay for a number of multiplications; each takes 2^27 of them."""
    return max(1, min(threads, products >> 27))


def _pack(library: ctypes.CDLL, layer: Pointwise) -> np.ndarray:
    """Return the weights in the layout of the kernels."""
    out_channels, in_channels = layer.weight.shape
    packed = np.empty(library.glc_size(out_channels, in_channels), np.int16)
    doubles = layer.weight.dtype == np.float64
    weight = np.ascontiguousarray(layer.weight, np.float64 if doubles else np.float32)
    pack = library.glc_weights_of_doubles if doubles else library.glc_weights_of_floats
    pack(weight.ctypes.data, out_channels, in_channels, packed.ctypes.data)
    return packed


def _layer(layer: Pointwise, packed: np.ndarray) -> _Layer:
    out_channels, in_channels = layer.weight.shape
    return _Layer(packed.ctypes.data, layer.bias.ctypes.data, out_channels, in_channels, layer.max_high)


def _run_planes(
    library: ctypes.CDLL,
    x: np.ndarray,
    out: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray,
    threads: int = 1,
) -> bool:
    """Compute a depth-wise convolution of units, int32 `[B, C, H, W]`; return whether the output is valid."""
    for image, target in zip(x, out, strict=True):
        channels, height, width = image.shape
        planes = _Planes(image.ctypes.data, target.ctypes.data, weights.ctypes.data, bias.ctypes.data)
        planes.channels, planes.height, planes.width = channels, height, width
        planes.side, planes.threads = round(len(weights) ** 0.5), _useful(threads, image.size * len(weights))
        if library.glc_planes(ctypes.byref(planes)):
            return False
    return True


def _declare(library: ctypes.CDLL) -> None:
    int64, address = ctypes.c_int64, ctypes.c_void_p
    library.glc_use_amx.argtypes, library.glc_use_amx.restype = (ctypes.c_int,), ctypes.c_int
    library.glc_use_amx(permits_amx())
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
    generator = np.random.Generator(np.random.PCG64(0))

    def integers(limit: int, *shape: int) -> np.ndarray:
        return generator.integers(-limit, limit, shape, endpoint=True)

    def layer(weight: np.ndarray, bias: np.ndarray) -> Pointwise:
        on_grid = weight / _UNITS
        return Pointwise(on_grid, bias / _UNITS, max_high(on_grid))

    in_channels, half = 33, 9  # not multiples of the block sizes; nor are 3 * 23 positions
    for row, limit in ((_ROW_LIMIT - 1, 1 << 22), (1 << 17, 1 << 25), (1 << 14, 1 << 27), (40, 1 << 12)):
        x, bias = integers(limit, 1, in_channels, 3, 23), integers(1 << 28, 2 * half)
        added = integers(1 << 30, 1, half, 3, 23) / (1 << 26)
        weight, narrow = (
            integers(row // in_channels, 2 * half, in_channels),
            integers(row // (32 * half), half, half),
        )
        weight[0] = row // in_channels * np.sign(x[0, :, 1, 1])  # all of one sign
        wide = _to_activations(weight @ x.clip(-_TOP, _TOP)[0].reshape(in_channels, -1) + bias[:, None], 14)
        value, gate = wide[:half], wide[half:]
        gated = np.where(
            gate < 0, _to_activations(value * gate * 1638, 26), _to_activations(value * gate, 12)
        )
        sums = _to_activations(narrow @ gated + bias[:half, None], 14)
        expected = sums.reshape(added.shape) / 4096 + added
        first, second = layer(weight, bias), layer(narrow, bias[:half])
        first = first._replace(weight=first.weight.astype(np.float32))  # as in weights files
        out = np.empty_like(expected)
        given = (x / 4096, out, first, second, 1638 / _UNITS, added)
        if not _run(library, *given) or not np.array_equal(out, expected):
            return False
        units = np.empty((1, 2 * half, 3, 23), np.int32)
        if not _run(library, x.clip(-_TOP, _TOP).astype(np.int32), units, first, slope=164 / _UNITS):
            return False
        leaky = np.where(wide < 0, _to_activations(wide * 164, 14), wide).reshape(units.shape)
        taps = integers(row // 9, 9, 2 * half)
        planes = np.empty_like(units)
        if not _run_planes(library, units, planes, taps[..., None] / _UNITS, bias / _UNITS):
            return False
        padded = np.pad(leaky[0], ((0, 0), (1, 1), (1, 1)))
        shifted = [padded[:, i : i + 3, j : j + 23] for i in range(3) for j in range(3)]
        sums = sum(tap[:, None, None] * part for tap, part in zip(taps, shifted, strict=True))
        sums = _to_activations(sums + bias[:, None, None], 14)
        if not np.array_equal(units, leaky) or not np.array_equal(planes[0], sums):
            return False
    # An activation too large for the sums must be refused, if there is one.
    first = layer(np.full((1, 31), (1 << 15) - 1), np.zeros(1))
    x, out = np.full((1, 31, 1, 1), 16000.0), np.empty((1, 1, 1, 1))
    return not _run(library, x, out, first) or out.item() == _TOP / 4096


_TOP = 1 << 26


def _to_activations(sums: np.ndarray, bits: int) -> np.ndarray:
    """Return sums / 2^bits as activations: rounded, halves to even, and clamped."""
    return ((sums + (1 << (bits - 1)) - 1 + (sums >> bits & 1)) >> bits).clip(-_TOP, _TOP)


NATIVE = Native(Path(__file__).with_suffix(".c"), _declare, _self_test)
