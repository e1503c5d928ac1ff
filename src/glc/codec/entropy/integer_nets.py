"""Exact arithmetic for the networks that give the symbols' probabilities.

A decoder must compute the very same probabilities as the encoder did; in floating point one rounding that
another device, thread count or library does differently desynchronises the entropy coder. Here nothing is
ever rounded in an order-dependent way:

- weights and slopes lie on a grid of 2^-14, activations on a grid of 2^-12 within +-2^14;
- so every product of a convolution, and every partial sum of them, is a multiple of 2^-26 of magnitude
  below 2^27: it has at most 53 bits and float64 holds it exactly, whatever the order of summation;
- results return to the activations' grid by one rounding (half to even) and one clamp per element.

The result is a function of integers, defined in docs/bitstream.md; float64 is only a fast way to compute it.
Convolutions are matrix products and shifted sums: nothing that transforms its operands (Winograd, FFT).
"""

import copy
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.codec.entropy import integer_kernels
from glc.codec.entropy.integer_kernels import Pointwise
from glc.errors import InexactError
from glc.layers.blocks import DepthConv, GatedFeedForward

WEIGHT_BITS = 14
ACTIVATION_BITS = 12
ACTIVATION_LIMIT = 1 << 14
"""Largest magnitude of an activation."""
_ONE = float(1 << ACTIVATION_BITS)
_TOP = float(ACTIVATION_LIMIT << ACTIVATION_BITS)
_SUM_LIMIT = 1 << 53
_POSITIONS = 1024
"""Positions of a map that a feed-forward layer computes at a time."""

Module = TypeVar("Module", bound=nn.Module)


def to_grid(x: Tensor) -> Tensor:
    """Return x in float64, rounded to multiples of 2^-12 (half to even) and clamped to +-2^14."""
    return _to_units(x).mul_(1 / _ONE)


def _to_units(x: Tensor) -> Tensor:
    """Return x on the activations' grid, as whole numbers of its step."""
    return x.double().mul(_ONE).round_().clamp_(-_TOP, _TOP)


def _on_weight_grid(weights: Tensor, name: str) -> Tensor:
    weights = weights.detach().double()
    if not weights.isfinite().all():
        raise InexactError(f"{name} has weights that are not finite")
    return weights.mul(1 << WEIGHT_BITS).round_().div_(1 << WEIGHT_BITS)


class ExactConv2d(nn.Module):
    """A convolution of stride 1 whose output keeps the size, in exact arithmetic.

    The input is put on the activations' grid, the weights are on theirs, the bias is on the grid of their
    products; the output is put on the activations' grid.

    Args:
        conv: 1x1, depth-wise, or dense, of odd size and padded with zeros.
        name: what to call it in messages.
        keep: hold the weights in float64, twice the memory of the convolution's own. Otherwise they are made
            of its own in each call, which must be the same then.

    Raises:
        InexactError: when the convolution is of another kind, or its sums could outgrow 53 bits.
    """

    bias: Tensor
    _kept: Tensor | None

    def __init__(self, conv: nn.Conv2d, name: str = "convolution", keep: bool = True) -> None:
        super().__init__()
        side = conv.kernel_size[0]
        depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1
        plain = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
        same = conv.kernel_size == (side, side) and side % 2 == 1 and conv.padding == (side // 2, side // 2)
        if not plain or not same or (conv.groups != 1 and not depthwise):
            raise InexactError(f"{name} is no convolution that can be computed exactly: {conv}")
        self.radius = side // 2
        self.depthwise = depthwise
        weight = _on_weight_grid(conv.weight, name)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
        # In units of the activations' grid, as is the input: the products are those of whole numbers, scaled.
        bias = _on_weight_grid(bias.detach().double() * _ONE, name)
        largest = weight.abs().sum((1, 2, 3)) * _TOP + bias.abs()
        if largest.max() * (1 << WEIGHT_BITS) >= _SUM_LIMIT:
            raise InexactError(f"{name} has weights so large that its sums do not fit 53 bits")
        pointwise = self.radius == 0 and not depthwise
        self._most = integer_kernels.most(weight[:, :, 0, 0]) if pointwise else -1
        self.register_buffer("_kept", _taps(weight).contiguous() if keep else None)
        self._own = None if keep else conv.weight.detach()
        self.register_buffer("bias", bias[:, None])

    def weight(self) -> Tensor:
        """Return the weights on their grid, float64 `[taps, out_channels, in_channels or 1]`."""
        if self._own is None:
            assert self._kept is not None
            return self._kept
        taps = _taps(self._own)
        taps = taps.float() if taps.dtype == torch.float16 else taps
        made = torch.empty(taps.shape, dtype=torch.float64)
        # Powers of two: exact in the weights' own format too, but for the range of float16.
        return torch.mul(taps, 1 << WEIGHT_BITS, out=made).round_().mul_(2.0**-WEIGHT_BITS)

    def pointwise(self) -> Pointwise:
        """Return a convolution of 1x1 as `exact_integers` takes it."""
        weight = self.weight()[0] if self._own is None else self._own[:, :, 0, 0]
        return Pointwise(weight, self.bias[:, 0].contiguous(), self._most)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to float64 `[B, out_channels, H, W]` on the activations' grid."""
        if self.radius == 0 and integer_kernels.takes(x):
            made = integer_kernels.pointwise(x, self.pointwise())
            if made is not None:
                return made
        x = _to_units(x)
        b, _, h, w = x.shape
        if self.radius == 0:
            total = _product(self.weight()[0], x.reshape(b, -1, h * w)).add_(self.bias)
        elif self.depthwise:
            total = self._shifted_sum(x, h, w).flatten(2)
        else:
            total = self.bias.expand(b, -1, h * w).clone()
            for tap, shifted in zip(self.weight(), self._shifts(x, h, w), strict=True):
                total += _product(tap, shifted.reshape(b, -1, h * w))
        return total.round_().clamp_(-_TOP, _TOP).mul_(1 / _ONE).view(b, -1, h, w)

    def _shifts(self, x: Tensor, h: int, w: int) -> list[Tensor]:
        padded = F.pad(x, [self.radius] * 4)
        side = 2 * self.radius + 1
        return [padded[..., i : i + h, j : j + w] for i in range(side) for j in range(side)]

    def _shifted_sum(self, x: Tensor, h: int, w: int) -> Tensor:
        total = self.bias[..., None].expand(x.shape).clone(memory_format=torch.contiguous_format)
        for tap, shifted in zip(self.weight(), self._shifts(x, h, w), strict=True):
            total.addcmul_(shifted, tap[..., None])
        return total


def _product(weight: Tensor, x: Tensor) -> Tensor:
    """Return weight `[O, I]` times x `[B, I, N]`."""
    # A batch of one matrix takes half as long again as the matrix.
    return torch.mm(weight, x[0])[None] if len(x) == 1 else torch.matmul(weight, x)


def _taps(weight: Tensor) -> Tensor:
    """Return a convolution's weights `[O, I, k, k]` as k * k matrices `[O, I]`."""
    return weight.permute(2, 3, 0, 1).reshape(-1, *weight.shape[:2])


class ExactFeedForward(nn.Module):
    """`GatedFeedForward` in exact arithmetic, some positions at a time.

    It computes what its layers would one after the other, bit for bit. What lies between them, four times as
    wide as the map, exists for a few positions only: the memory of a large map is that of the map.

    Args:
        block: the layers.
        name: what to call it in messages.
        keep: see `ExactConv2d`.
    """

    def __init__(self, block: GatedFeedForward, name: str, keep: bool = True) -> None:
        super().__init__()
        self.expand = ExactConv2d(block.expand, f"{name}.expand", keep)
        self.project = ExactConv2d(block.project, f"{name}.project", keep)
        self.slope = ExactLeakyReLU(block.act.negative_slope).slope

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to float64 of that shape."""
        if integer_kernels.takes(x):
            expand, project = self.expand.pointwise(), self.project.pointwise()
            made = integer_kernels.feed_forward(x, expand, project, self.slope)
            if made is not None:
                return made
        return self._in_parts(x)

    def _in_parts(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape, dtype=torch.float64, device=x.device)
        flat, result = x.flatten(2), out.flatten(2)
        step = _POSITIONS if x.device.type == "cpu" else flat.shape[2]
        expand, project = self.expand.weight()[0], self.project.weight()[0]
        for start in range(0, flat.shape[2], step):
            part = flat[:, :, start : start + step]
            # Whole numbers of the activations' grid throughout: scaling by powers of two rounds nothing.
            wide = _product(expand, _to_units(part)).add_(self.expand.bias)
            value, gate = wide.round_().clamp_(-_TOP, _TOP).chunk(2, 1)
            gated = value.mul_(F.leaky_relu_(gate, self.slope)).mul_(1 / _ONE).round_().clamp_(-_TOP, _TOP)
            narrow = _product(project, gated).add_(self.project.bias)
            narrow.round_().clamp_(-_TOP, _TOP).mul_(1 / _ONE)
            torch.add(part, narrow, out=result[:, :, start : start + step])
        return out


class ExactDepthConv(nn.Module):
    """`DepthConv` in exact arithmetic: its layers one after the other, or all at once in whole numbers.

    Args:
        block: the layers.
        name: what to call it in messages.
        keep: see `ExactConv2d`.
    """

    def __init__(self, block: DepthConv, name: str, keep: bool = True) -> None:
        super().__init__()
        self.mix = ExactConv2d(block.mix, f"{name}.mix", keep)
        self.act = ExactLeakyReLU(block.act.negative_slope, f"{name}.act")
        self.depthwise = ExactConv2d(block.depthwise, f"{name}.depthwise", keep)
        self.project = ExactConv2d(block.project, f"{name}.project", keep)
        self.skip: nn.Module = nn.Identity()
        if isinstance(block.skip, nn.Conv2d):
            self.skip = ExactConv2d(block.skip, f"{name}.skip", keep)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to float64 `[B, out_channels, H, W]`."""
        past = self.skip(x)
        if integer_kernels.takes(x):
            mix, project, wise = self.mix.pointwise(), self.project.pointwise(), self.depthwise
            made = integer_kernels.depth_conv(
                x, mix, self.act.slope, wise.weight(), wise.bias, project, added=past
            )
            if made is not None:
                return made
        return self.project(self.depthwise(self.act(self.mix(x)))) + past


class ExactLeakyReLU(nn.Module):
    """A leaky rectifier whose slope lies on the weights' grid; its output is exact, on the products' grid.

    Args:
        slope: factor of negative inputs.
        name: what to call it in messages.
    """

    def __init__(self, slope: float, name: str = "rectifier") -> None:
        super().__init__()
        self.slope = float(_on_weight_grid(torch.tensor(slope), name))

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape, on the activations' grid, to the same shape."""
        return torch.where(x < 0, x * self.slope, x)


def exact(network: Module, name: str = "network", keep: bool = True) -> Module:
    """Return a network like the given one that computes in exact arithmetic.

    Its convolutions and rectifiers are replaced; what lies between them, sums and products of activations
    and rearrangements, is exact in float64 already. Parameters that it has besides are those of the given
    one, and not used.

    Args:
        network: made of convolutions, rectifiers and what is exact anyway.
        name: what to call it in messages.
        keep: hold weights of its own, see `ExactConv2d`.

    Raises:
        InexactError: when the network has a layer that is not known to be exact.
    """
    # The weights are not copied: their places are taken at once.
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    network = copy.deepcopy(network, shared).eval()
    _replace(network, name, keep)
    return network


def _replace(module: nn.Module, path: str, keep: bool) -> None:
    for name, child in list(module.named_children()):
        where = f"{path}.{name}"
        if isinstance(child, nn.Conv2d):
            setattr(module, name, ExactConv2d(child, where, keep))
        elif isinstance(child, GatedFeedForward):
            setattr(module, name, ExactFeedForward(child, where, keep))
        elif isinstance(child, DepthConv):
            setattr(module, name, ExactDepthConv(child, where, keep))
        elif isinstance(child, nn.LeakyReLU):
            setattr(module, name, ExactLeakyReLU(child.negative_slope, where))
        elif isinstance(child, nn.PixelShuffle | nn.Identity) or next(child.children(), None) is not None:
            _replace(child, where, keep)
        else:
            raise InexactError(f"{where} ({type(child).__name__}) is not known to be exact")


def check_device(device: torch.device) -> None:
    """Check that a device multiplies matrices exactly where float64 can.

    Some libraries offer to emulate float64 by lower precisions. A product whose sums need 53 bits is compared
    with the same in integers.

    Raises:
        InexactError: when it has no float64, or the product is not exact.
    """
    generator = torch.Generator().manual_seed(0)
    # 2048 products of 16 and 26 bits: all of one sign, so that the sums come to about 2^52.
    a = torch.randint(1 << 15, 1 << 16, (256, 2048), generator=generator)
    b = torch.randint(1 << 25, 1 << 26, (2048, 256), generator=generator)
    expected = (a.unsqueeze(1) * b.T.unsqueeze(0)[:, :8]).sum(-1)
    try:
        product = torch.matmul(a.double().to(device), b.double().to(device))[:, :8].cpu()
    except (TypeError, RuntimeError) as error:
        raise InexactError(f"{device} cannot compute in float64 ({error})") from error
    if not torch.equal(product.long(), cast(Tensor, expected)):
        raise InexactError(f"{device} does not multiply float64 matrices exactly")
