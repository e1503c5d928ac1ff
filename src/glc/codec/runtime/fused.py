"""Operations on complete feature vectors in C: `PixelNorm` with swish, and the distance of LPIPS.

PyTorch computes each in about ten operations that read and write complete maps. `fused.c` beside this file
reads each map once or twice. Sums are float32, also where PyTorch rounds each operation to bfloat16.
`glc.fused` has the gradients.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glc.codec.native import Native

CHANNELS = 16
"""Channel counts must be multiples of it: the longest vector, of AVX-512."""


class _FusedTask(ctypes.Structure):
    """Mirror of `struct fused_task` of fused.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("other", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        ("half", ctypes.c_int64),
        ("swish", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("next", ctypes.c_int64),
    )


def available() -> bool:
    """Return whether the kernels can be used, on any number of threads."""
    return NATIVE.library() is not None and (torch.get_num_threads() == 1 or _team() is not None)


def suits(x: Tensor) -> bool:
    """Return whether the kernels accept a map `[B, C, H, W]`."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.shape[1] % CHANNELS == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _task(
    x: Tensor, weight: Tensor, out: Tensor, eps: float, parts: int, swish: bool = False, **maps: Tensor
) -> _FusedTask:
    return _FusedTask(
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        out=out.data_ptr(),
        rows=x.numel() // x.shape[1],
        channels=x.shape[1],
        parts=parts,
        half=x.dtype == torch.bfloat16,
        swish=swish,
        eps=eps,
        **{name: tensor.data_ptr() for name, tensor in maps.items()},
    )


def run(name: str, x: Tensor, weight: Tensor, out: Tensor, eps: float, **options: Any) -> None:
    """Run a function of fused.c on as many threads as PyTorch uses.

    Args:
        name: `glc_norm` or `glc_distance`.
        x: a map that `suits` accepts.
        weight: `[C]`, float32.
        out: the result; see `struct fused_task` for it and for the options.
        eps: see there.
        **options: further maps by name, and `swish`.
    """
    library = NATIVE.library()
    assert library is not None
    task = _task(x, weight, out, eps, torch.get_num_threads(), **options)
    work = getattr(library, name)
    if task.parts == 1:
        work(ctypes.byref(task))
    else:
        _team()(work, ctypes.byref(task), task.parts, 0)


@cache
def _team() -> Any:
    """Return the function that runs a function on OpenMP's threads, or None where it is unknown.

    Threads of our own would compete with PyTorch's, which spin for milliseconds after each of its operations.
    """
    try:
        team = ctypes.CDLL(None).GOMP_parallel  # of the library that PyTorch has loaded
    except (AttributeError, OSError, TypeError):
        return None
    team.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    team.restype = None
    return team


def _declare(library: ctypes.CDLL) -> None:
    library.glc_sizeof_fused_task.restype = ctypes.c_int64
    for name in ("glc_norm", "glc_distance"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
        getattr(library, name).restype = None


def _self_test(library: ctypes.CDLL) -> bool:
    if library.glc_sizeof_fused_task() != ctypes.sizeof(_FusedTask):
        return False
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, 3, 1, 1, 32, generator=generator, dtype=torch.float32).movedim(-1, 2)
        weight, bias = torch.rand(2, 32, generator=generator, dtype=torch.float32)
        norm, distances = torch.empty_like(x), x.new_empty(3)
        library.glc_norm(ctypes.byref(_task(x, weight, norm, 1e-6, 2, swish=True, bias=bias)))
        library.glc_distance(ctypes.byref(_task(x, weight, distances, 1e-10, 2, other=y)))
        expected = F.silu(F.rms_norm(x.flatten(1), (32,), weight, 1e-6) + bias)
        between = ((F.normalize(x, dim=1) - F.normalize(y, dim=1)) ** 2).flatten(1) @ weight
        return torch.allclose(norm.flatten(1), expected, atol=1e-5) and torch.allclose(distances, between)


NATIVE = Native(Path(__file__).with_suffix(".c"), _declare, _self_test)
