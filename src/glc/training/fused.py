"""Operations of a training step in C for the CPU: `PixelNorm` with swish, and the distance of LPIPS.

PyTorch computes each in about ten operations that read and write complete maps, and as many for the gradient:
half of a training step of `small`. `fused.c` beside this file reads each map once or twice. Sums are float32,
also where PyTorch rounds each operation to bfloat16.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glc.codec.native import Native
from glc.layers.blocks import PixelNorm
from glc.losses.perceptual import LPIPS

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


def fuse(module: nn.Module) -> int:
    """Let the layers of a module that have a kernel here use it; return how many do.

    The kernels apply to float32 and bfloat16 maps on the CPU in channels-last memory with multiples of
    `CHANNELS` channels. PyTorch computes the others, and all of them without a C compiler.
    """
    if NATIVE.library() is None or _team() is None:
        return 0
    count = 0
    for layer in module.modules():
        if isinstance(layer, PixelNorm):
            layer.kernel = normalize
        elif isinstance(layer, LPIPS):
            layer.kernel = unit_distance
        else:
            continue
        count += 1
    return count


def _suits(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.shape[1] % CHANNELS == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def normalize(x: Tensor, weight: Tensor, bias: Tensor, eps: float, swish: bool) -> Tensor | None:
    """Return what `PixelNorm` returns, followed by swish if asked for; None if the kernel does not apply.

    Args:
        x: `[B, C, H, W]`.
        weight: `[C]`.
        bias: `[C]`.
        eps: added to the mean square.
        swish: apply swish to the result.
    """
    if not _suits(x) or weight.dtype != torch.float32:
        return None
    return _Normalize.apply(x, weight, bias, eps, swish)


def unit_distance(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """Return the weighted squared distances of unit-length vectors; None if the kernel does not apply.

    Args:
        x: `[B, C, H, W]`; gradients are computed for it.
        y: `[B, C, H, W]`; must not need gradients.
        weight: `[C]`.
        eps: added to the lengths.

    Returns:
        `sum_c weight (x / |x| - y / |y|)^2`, float32 `[B, H, W]`.
    """
    if (
        not (_suits(x) and _suits(y))
        or x.dtype != y.dtype
        or y.requires_grad
        or weight.dtype != torch.float32
    ):
        return None
    return _Distance.apply(x, y, weight, eps)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, swish: bool) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.options = (eps, swish)
        out = torch.empty_like(x)
        _run("glc_norm", x, weight, out, eps, bias=bias, swish=swish)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        eps, swish = ctx.options
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        sums = x.new_zeros((torch.get_num_threads(), 4, x.shape[1]), dtype=torch.float32)
        _run("glc_norm", x, weight, out, eps, bias=bias, swish=swish, gradient=gradient, sums=sums)
        by_weight, by_bias = sums[:, :2].sum(0)
        return out, by_weight, by_bias, None, None


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, y, weight)
        ctx.eps = eps
        out = x.new_empty((len(x), *x.shape[2:]), dtype=torch.float32)
        _run("glc_distance", x, weight, out, eps, other=y)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight = ctx.saved_tensors
        out = torch.empty_like(x)
        _run("glc_distance", x, weight, out, ctx.eps, other=y, gradient=gradient.float().contiguous())
        return out, None, None, None


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


def _run(name: str, x: Tensor, weight: Tensor, out: Tensor, eps: float, **options: Any) -> None:
    """Run a function of fused.c on as many threads as PyTorch uses."""
    library, team = NATIVE.library(), _team()
    assert library is not None
    task = _task(x, weight, out, eps, torch.get_num_threads(), **options)
    work = getattr(library, name)
    if task.parts == 1:
        work(ctypes.byref(task))
    else:
        team(work, ctypes.byref(task), task.parts, 0)


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
