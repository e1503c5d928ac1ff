"""The kernels of `glc.codec.runtime.fused` with gradients, for training and latent optimisation.

What they compute takes half of a training step of `small` in PyTorch.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glc.codec.runtime import fused
from glc.codec.runtime.fused import run
from glc.layers.blocks import PixelNorm
from glc.losses.perceptual import LPIPS


def fuse(module: nn.Module) -> int:
    """Let the layers of a module that have a kernel here use it; return how many do.

    The kernels apply to float32 and bfloat16 maps on the CPU in channels-last memory with multiples of
    16 channels. PyTorch computes the others, and all of them without a C compiler.
    """
    if not fused.available():
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


def normalize(x: Tensor, weight: Tensor, bias: Tensor, eps: float, swish: bool) -> Tensor | None:
    """Return what `PixelNorm` returns, followed by swish if asked for; None if the kernel does not apply.

    Args:
        x: `[B, C, H, W]`.
        weight: `[C]`.
        bias: `[C]`.
        eps: added to the mean square.
        swish: apply swish to the result.
    """
    if not fused.suits(x) or weight.dtype != torch.float32:
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
        not (fused.suits(x) and fused.suits(y))
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
        run("glc_norm", x, weight, out, eps, bias=bias, swish=swish)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        eps, swish = ctx.options
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        sums = x.new_zeros((torch.get_num_threads(), 4, x.shape[1]), dtype=torch.float32)
        run("glc_norm", x, weight, out, eps, bias=bias, swish=swish, gradient=gradient, sums=sums)
        by_weight, by_bias = sums[:, :2].sum(0)
        return out, by_weight, by_bias, None, None


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, y, weight)
        ctx.eps = eps
        out = x.new_empty((len(x), *x.shape[2:]), dtype=torch.float32)
        run("glc_distance", x, weight, out, eps, other=y)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight = ctx.saved_tensors
        out = torch.empty_like(x)
        run("glc_distance", x, weight, out, ctx.eps, other=y, gradient=gradient.float().contiguous())
        return out, None, None, None
