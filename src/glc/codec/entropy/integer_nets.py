"""Integer networks: hyper-synthesis and context model in fixed-point arithmetic (Ballé et al., 2019).

A decoder must compute the same probabilities as the encoder. In floating point, one rounding that differs by
device, thread count or library desynchronises the entropy coder. Here no rounding depends on the order of
operations:

- weights and slopes lie on a grid of 2^-14, activations on a grid of 2^-12 within +-2^14;
- so every product of a convolution, and every partial sum, is a multiple of 2^-26 of magnitude below 2^27:
  it has at most 53 bits, and float64 holds it exactly in any order of summation;
- results return to the activations' grid by one rounding (half to even) and one clamp per element.

The result is a function of integers, defined in docs/bitstream.md; float64 is only a fast way to compute it.
Convolutions are matrix products and shifted sums, never transforms of their operands (Winograd, FFT).

A user's own modules may stand between these layers if they only add, multiply, compare and rearrange
elements, which `check_operations` verifies.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glc.codec.entropy import integer_kernels
from glc.codec.entropy.integer_kernels import Pointwise
from glc.codec.entropy.tables import ACTIVATION_BITS, ACTIVATION_LIMIT, WEIGHT_BITS
from glc.errors import InexactError
from glc.layers.blocks import DepthConv, GatedFeedForward

_ONE = float(1 << ACTIVATION_BITS)
_TOP = float(ACTIVATION_LIMIT << ACTIVATION_BITS)
_SUM_LIMIT = 1 << 53
_POSITIONS = 1024
"""Positions that a feed-forward layer computes at a time."""

Module = TypeVar("Module", bound=nn.Module)

SUPPORTED = (
    "supported layers: Conv2d (1x1, depth-wise or dense; odd size, stride 1, zero padding that keeps the "
    "size), LeakyReLU, ReLU, PixelShuffle, PixelUnshuffle, Identity, and modules of these that otherwise "
    "add, multiply, compare and rearrange elements"
)
_ELEMENTWISE = (nn.ReLU, nn.PixelShuffle, nn.PixelUnshuffle, nn.Identity)
_OPERATIONS = {
    "elementwise": """
        add sub rsub mul neg abs sign clamp clamp_min clamp_max maximum minimum where relu leaky_relu round
        floor ceil trunc eq ne lt le gt ge logical_and logical_or logical_not bitwise_and bitwise_or
        bitwise_xor bitwise_not masked_fill isfinite
    """,
    "copies and rearrangements": """
        alias detach clone copy lift_fresh _to_copy cat stack split split_with_sizes chunk slice select unbind
        view _unsafe_view reshape permute transpose t expand repeat unsqueeze squeeze flatten unfold
        as_strided movedim roll flip constant_pad_nd replication_pad2d reflection_pad2d pixel_shuffle
        pixel_unshuffle upsample_nearest2d max_pool2d_with_indices index index_select gather embedding
    """,
    "new tensors": """
        empty zeros ones full arange scalar_tensor empty_like zeros_like ones_like full_like new_empty
        new_zeros new_ones new_full fill zero empty_strided new_empty_strided
    """,
}
"""Operations of torch that give the same bits on every device: one correctly rounded result per element."""
_EXACT = frozenset(" ".join(_OPERATIONS.values()).split())


def _to_units(x: Tensor) -> Tensor:
    """Return x as integers in units of the activations' grid, float64."""
    return x.double().mul(_ONE).round_().clamp_(-_TOP, _TOP)


def _on_weight_grid(weights: Tensor, name: str) -> Tensor:
    weights = weights.detach().double()
    if not weights.isfinite().all():
        raise InexactError(f"{name} has weights that are not finite")
    return weights.mul(1 << WEIGHT_BITS).round_().div_(1 << WEIGHT_BITS)


def runs_in_kernels(x: Tensor) -> bool:
    """Whether `glc.codec.entropy.integer_kernels` can run on a map `[B, C, H, W]`."""
    plain = type(x) is Tensor and x.device.type == "cpu" and not x.requires_grad and not x.is_neg()
    return plain and x.ndim == 4 and x.numel() > 0 and integer_kernels.available()


def _array(x: Tensor) -> np.ndarray:
    """Return a map as an array, of its memory if its type is one of NumPy's."""
    return (x if x.dtype in (torch.float32, torch.float64) else x.double()).numpy()


class IntegerConv2d(nn.Module):
    """A convolution of stride 1 that keeps the size, in integer arithmetic.

    Input and output are rounded to the activations' grid, weights to the weights' grid, the bias to the grid
    of their products.

    Args:
        conv: 1x1, depth-wise or dense, of odd size, zero-padded.
        keep: store a float64 copy of the weights, twice the memory of the float32 ones. Otherwise each call
            converts the convolution's own weights, which must not change.

    Raises:
        InexactError: for another kind of convolution, or if its sums could exceed 53 bits.
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
            raise InexactError(f"{name} ({conv}) cannot be computed in integers; {SUPPORTED}")
        self.radius = side // 2
        self.depthwise = depthwise
        weight = _on_weight_grid(conv.weight, name)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
        # Input and bias are in units of the activations' grid; products are integers times 2^-14.
        bias = _on_weight_grid(bias.detach().double() * _ONE, name)
        bound = weight.abs().sum((1, 2, 3)) * _TOP + bias.abs()
        if bound.max() * (1 << WEIGHT_BITS) >= _SUM_LIMIT:
            raise InexactError(f"{name} has weights so large that its sums do not fit 53 bits")
        pointwise = self.radius == 0 and not depthwise
        self._max_high = integer_kernels.max_high(weight[:, :, 0, 0].cpu().numpy()) if pointwise else -1
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
        rounded = torch.empty(taps.shape, dtype=torch.float64)
        # Scaling by a power of two is exact in the weights' own format too, except float16 (range).
        return torch.mul(taps, 1 << WEIGHT_BITS, out=rounded).round_().mul_(2.0**-WEIGHT_BITS)

    def pointwise(self) -> Pointwise:
        """Return a 1x1 convolution in the form of `integer_kernels`."""
        weight = self.weight()[0] if self._own is None else self._own[:, :, 0, 0]
        weight = weight if weight.dtype == torch.float64 else weight.float()
        return Pointwise(weight.numpy(), self.bias[:, 0].contiguous().numpy(), self._max_high)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to float64 `[B, out_channels, H, W]` on the activations' grid."""
        if self.radius == 0 and runs_in_kernels(x):
            result = integer_kernels.pointwise(_array(x), self.pointwise(), torch.get_num_threads())
            if result is not None:
                return torch.from_numpy(result)
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
    # A batched product of one matrix takes 1.5 times as long as a plain product.
    return torch.mm(weight, x[0])[None] if len(x) == 1 else torch.matmul(weight, x)


def _taps(weight: Tensor) -> Tensor:
    """Return a convolution's weights `[O, I, k, k]` as k * k matrices `[O, I]`."""
    return weight.permute(2, 3, 0, 1).reshape(-1, *weight.shape[:2])


class IntegerFeedForward(nn.Module):
    """`GatedFeedForward` in integer arithmetic, some positions at a time.

    The result equals that of its layers in sequence, bit for bit. The intermediate maps, four times as wide,
    exist for a few positions at a time, so a large map needs little more memory than itself.
    """

    def __init__(self, block: GatedFeedForward, name: str, keep: bool = True) -> None:
        super().__init__()
        self.expand = IntegerConv2d(block.expand, f"{name}.expand", keep)
        self.project = IntegerConv2d(block.project, f"{name}.project", keep)
        self.slope = IntegerLeakyReLU(block.act.negative_slope).slope

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to float64 of that shape."""
        if runs_in_kernels(x):
            layers = self.expand.pointwise(), self.project.pointwise(), self.slope
            result = integer_kernels.feed_forward(_array(x), *layers, torch.get_num_threads())
            if result is not None:
                return torch.from_numpy(result)
        return self._in_chunks(x)

    def _in_chunks(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape, dtype=torch.float64, device=x.device)
        flat, result = x.flatten(2), out.flatten(2)
        step = _POSITIONS if x.device.type == "cpu" else flat.shape[2]
        expand, project = self.expand.weight()[0], self.project.weight()[0]
        for start in range(0, flat.shape[2], step):
            chunk = flat[:, :, start : start + step]
            # In units of the activations' grid throughout; scaling by powers of two is exact.
            wide = _product(expand, _to_units(chunk)).add_(self.expand.bias)
            value, gate = wide.round_().clamp_(-_TOP, _TOP).chunk(2, 1)
            gated = value.mul_(F.leaky_relu_(gate, self.slope)).mul_(1 / _ONE).round_().clamp_(-_TOP, _TOP)
            narrow = _product(project, gated).add_(self.project.bias)
            narrow.round_().clamp_(-_TOP, _TOP).mul_(1 / _ONE)
            torch.add(chunk, narrow, out=result[:, :, start : start + step])
        return out


class IntegerDepthConv(nn.Module):
    """`DepthConv` in integer arithmetic, by `integer_kernels` or layer by layer."""

    def __init__(self, block: DepthConv, name: str, keep: bool = True) -> None:
        super().__init__()
        self.mix = IntegerConv2d(block.mix, f"{name}.mix", keep)
        self.act = IntegerLeakyReLU(block.act.negative_slope, f"{name}.act")
        self.depthwise = IntegerConv2d(block.depthwise, f"{name}.depthwise", keep)
        self.project = IntegerConv2d(block.project, f"{name}.project", keep)
        self.skip: nn.Module = nn.Identity()
        if isinstance(block.skip, nn.Conv2d):
            self.skip = IntegerConv2d(block.skip, f"{name}.skip", keep)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to float64 `[B, out_channels, H, W]`."""
        residual = self.skip(x)
        if runs_in_kernels(x):
            result = integer_kernels.depth_conv(
                _array(x),
                self.mix.pointwise(),
                self.act.slope,
                self.depthwise.weight().numpy(),
                self.depthwise.bias.numpy(),
                self.project.pointwise(),
                added=_array(residual),
                threads=torch.get_num_threads(),
            )
            if result is not None:
                return torch.from_numpy(result)
        return self.project(self.depthwise(self.act(self.mix(x)))) + residual


class IntegerLeakyReLU(nn.Module):
    """A leaky rectifier whose slope is on the weights' grid; its output is exact, on the products' grid.

    Args:
        slope: factor for negative inputs.
    """

    def __init__(self, slope: float, name: str = "rectifier") -> None:
        super().__init__()
        self.slope = float(_on_weight_grid(torch.tensor(slope), name))

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape, on the activations' grid, to the same shape."""
        return torch.where(x < 0, x * self.slope, x)


def to_integer_network(network: Module, name: str = "network", keep: bool = True) -> Module:
    """Return a copy of a network that computes in integer arithmetic.

    Convolutions and rectifiers are replaced. Sums and products of activations and rearrangements between them
    are exact in float64; `check_operations` verifies that a user's own modules do nothing else. Other
    parameters are shared with the given network.

    Args:
        network: made of supported layers.
        keep: store copies of the weights, see `IntegerConv2d`.

    Raises:
        InexactError: for a layer that is not supported.
    """
    # Share the weights with the copy: most are replaced at once.
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    return cast(Module, _converted(copy.deepcopy(network, shared).eval(), name, keep, {}))


def _converted(module: nn.Module, name: str, keep: bool, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return the integer version of a module, or the module with its children converted."""
    if module in done:
        return done[module]
    converted = module
    if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward:
        converted = IntegerConv2d(module, name, keep)
    elif type(module) is GatedFeedForward:
        converted = IntegerFeedForward(module, name, keep)
    elif type(module) is DepthConv:
        converted = IntegerDepthConv(module, name, keep)
    elif isinstance(module, nn.LeakyReLU) and type(module).forward is nn.LeakyReLU.forward:
        converted = IntegerLeakyReLU(module.negative_slope, name)
    elif module._modules or isinstance(module, _ELEMENTWISE) or _is_foreign(module):
        for child_name, child in module._modules.items():
            if child is not None:
                setattr(module, child_name, _converted(child, f"{name}.{child_name}", keep, done))
    else:
        raise InexactError(f"{name} ({type(module).__name__}) cannot be computed in integers; {SUPPORTED}")
    done[module] = converted
    return converted


def _is_foreign(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] not in ("glc", "torch")


def has_foreign(*networks: nn.Module) -> bool:
    """Whether a network has a module that belongs neither to glc nor to torch."""
    return any(_is_foreign(module) for network in networks for module in network.modules())


def check_operations(network: nn.Module, name: str, compute: Callable[[], object]) -> None:
    """Check that a network performs only exact operations between its integer layers.

    Args:
        network: a result of `to_integer_network`, or a module that only looks up codewords.
        compute: calls the network with some input.

    Raises:
        InexactError: for an operation that is not known to be exact; the message names it and its module.
    """
    watch, handles = _Watch(f"{name} ({type(network).__name__})"), []
    for path, module in network.named_modules(prefix=name):
        exact_layer = isinstance(module, IntegerConv2d | IntegerFeedForward | IntegerDepthConv)
        label = None if exact_layer else f"{path} ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(lambda *_, label=label: watch.path.append(label)))
        handles.append(module.register_forward_hook(lambda *_: watch.leave()))
    try:
        with torch.inference_mode(False), torch.no_grad(), watch:
            compute()
    except RuntimeError as error:  # such as a layer of torch whose weights are not float64
        reason = " ".join(str(error).split())
        raise InexactError(
            f"{watch.path[-1]} cannot be computed in integers ({reason}); {SUPPORTED}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchDispatchMode):
    """Refuses inexact floating-point operations outside of the integer layers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.path: list[str | None] = [name]
        """Modules that run, innermost last; None for an integer layer, which is not checked."""

    def leave(self) -> None:
        self.path.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        known = name in _EXACT or (name.endswith("_") and name[:-1] in _EXACT)
        refused = None not in self.path and (not known or kwargs.get("alpha", 1) != 1)
        if not (refused and _has_floats((args, kwargs))):
            result = func(*args, **kwargs)
            if not (refused and _has_floats(result)):
                return result
        raise InexactError(f"{self.path[-1]} computes {name}, which is not exact; {SUPPORTED}")


def _has_floats(values: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(values))


def check_device(device: torch.device) -> None:
    """Check that a device's float64 matrix products are exact when the sums fit 53 bits.

    Some libraries emulate float64 by lower precisions. A product whose sums need 53 bits is compared with
    64-bit integers.

    Raises:
        InexactError: if the device has no float64, or the product is not exact.
    """
    generator = torch.Generator().manual_seed(0)
    # 2048 products of 16 and 26 bits, all positive: the sums are about 2^52.
    a = torch.randint(1 << 15, 1 << 16, (256, 2048), generator=generator)
    b = torch.randint(1 << 25, 1 << 26, (2048, 256), generator=generator)
    expected = (a.unsqueeze(1) * b.T.unsqueeze(0)[:, :8]).sum(-1)
    try:
        product = torch.matmul(a.double().to(device), b.double().to(device))[:, :8].cpu()
    except (TypeError, RuntimeError) as error:
        raise InexactError(f"{device} cannot compute in float64 ({error})") from error
    if not torch.equal(product.long(), cast(Tensor, expected)):
        raise InexactError(f"{device} does not multiply float64 matrices exactly")
