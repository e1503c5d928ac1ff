"""The integer networks in NumPy: hyper-synthesis h_s and context model, as docs/bitstream.md defines them.

Float64 holds all sums exactly, in any order (see `glc.codec.entropy.integer_nets`), so these networks give
the same integers as those of PyTorch. The C kernels compute the layers where they are available.

Maps are float64 `[B, C, H, W]`, in units of 1.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain
from typing import Any

import numpy as np

from glc.codec.entropy import integer_kernels
from glc.codec.entropy.integer_kernels import Pointwise
from glc.codec.entropy.tables import ACTIVATION_BITS, ACTIVATION_LIMIT, WEIGHT_BITS
from glc.errors import InexactError
from glc.models.quadtree import STEPS

_ONE = float(1 << ACTIVATION_BITS)
_TOP = float(ACTIVATION_LIMIT << ACTIVATION_BITS)
_POSITIONS = 1024
"""Positions that a feed-forward layer computes at a time."""
_SLOPES = {slope: round(slope * (1 << WEIGHT_BITS)) / (1 << WEIGHT_BITS) for slope in (0.01, 0.1)}


def _to_units(x: np.ndarray) -> np.ndarray:
    """Return x as integers in units of the activations' grid."""
    return _to_grid(x * _ONE)


def _to_grid(units: np.ndarray) -> np.ndarray:
    np.rint(units, out=units)
    return np.clip(units, -_TOP, _TOP, out=units)


def _leaky(x: np.ndarray, slope: float) -> np.ndarray:
    return np.where(x < 0, x * _SLOPES[slope], x)


def _shuffle(x: np.ndarray) -> np.ndarray:
    """Return `[B, C, 2 h, 2 w]` from `[B, 4 C, h, w]`."""
    b, c, h, w = x.shape
    x = x.reshape(b, c // 4, 2, 2, h, w).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, c // 4, 2 * h, 2 * w)


class IntegerNetworks:
    """The networks between symbols and probabilities of one codec.

    Args:
        tensors: the weights as stored, by name.
        depth: shared blocks of the context model.
        threads: number of threads of the C kernels.

    Raises:
        KeyError: a layer is missing.
        InexactError: a weight is not finite, or sums could exceed 53 bits.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], depth: int, threads: int) -> None:
        self._tensors = tensors
        self._depth = depth
        self._threads = threads
        self._weight = cache(self._read_weight)
        self._bias = cache(self._read_bias)
        self._pointwise = cache(self._read_pointwise)
        gated = any(name.startswith("coder.gate.") for name in tensors)
        for name in (*_layers(depth), *(_GATE if gated else ())):
            if not self._has(name):
                raise KeyError(name)
        for name in tensors:
            prefix, _, kind = name.rpartition(".")
            if kind == "weight" and prefix.startswith(_NETWORKS):
                bound = np.abs(self._weight(prefix)).sum((0, 2)) * _TOP + np.abs(self._bias(prefix))
                # Also true for NaN.
                if not bound.max() * (1 << WEIGHT_BITS) < 1 << 53:
                    raise InexactError(f"{prefix} has weights whose sums do not fit 53 bits")

    def _read_weight(self, name: str) -> np.ndarray:
        """Return a convolution's weights on their grid, `[taps, out_channels, in_channels or 1]`."""
        weight = self._tensors[f"{name}.weight"].transpose(2, 3, 0, 1).astype(np.float64, order="C")
        weight *= 1 << WEIGHT_BITS
        np.rint(weight, out=weight)
        weight /= 1 << WEIGHT_BITS
        return weight.reshape(-1, *weight.shape[2:])

    def _read_bias(self, name: str) -> np.ndarray:
        """Return a convolution's bias in units of activations, `[out_channels]`."""
        bias = self._tensors.get(f"{name}.bias")
        if bias is None:
            return np.zeros(len(self._tensors[f"{name}.weight"]))
        return np.rint(bias.astype(np.float64) * _ONE * (1 << WEIGHT_BITS)) / (1 << WEIGHT_BITS)

    def _read_pointwise(self, name: str) -> Pointwise:
        weight = self._weight(name)[0]
        return Pointwise(weight, self._bias(name), integer_kernels.max_high(weight))

    def _has(self, name: str) -> bool:
        return f"{name}.weight" in self._tensors

    def _conv(self, name: str, x: np.ndarray) -> np.ndarray:
        """Convolve; the result is on the activations' grid."""
        weight = self._weight(name)
        if len(weight) == 1 and integer_kernels.available():
            result = integer_kernels.pointwise(x, self._pointwise(name), self._threads)
            if result is not None:
                return result
        x = _to_units(x)
        b, _, h, w = x.shape
        radius = round(len(weight) ** 0.5) // 2
        padded = np.pad(x, ((0, 0), (0, 0), (radius, radius), (radius, radius))) if radius else x
        side = 2 * radius + 1
        total = np.tile(self._bias(name)[None, :, None], (b, 1, h * w))
        for k, tap in enumerate(weight):
            i, j = divmod(k, side)
            shifted = padded[:, :, i : i + h, j : j + w].reshape(b, -1, h * w)
            total += shifted * tap if name.endswith("depthwise") else np.matmul(tap, shifted)
        return (_to_grid(total) / _ONE).reshape(b, -1, h, w)

    def _feed_forward(self, name: str, x: np.ndarray) -> np.ndarray:
        expand, project = f"{name}.expand", f"{name}.project"
        if integer_kernels.available():
            layers = self._pointwise(expand), self._pointwise(project), _SLOPES[0.1]
            result = integer_kernels.feed_forward(x, *layers, self._threads)
            if result is not None:
                return result
        b, c = x.shape[:2]
        flat, out = x.reshape(b, c, -1), np.empty(x.shape)
        result = out.reshape(b, c, -1)
        for start in range(0, flat.shape[2], _POSITIONS):
            chunk = flat[:, :, start : start + _POSITIONS]
            wide = np.matmul(self._weight(expand)[0], _to_units(chunk)) + self._bias(expand)[:, None]
            value, gate = np.split(_to_grid(wide), 2, axis=1)
            gated = _to_grid(value * _leaky(gate, 0.1) / _ONE)
            narrow = np.matmul(self._weight(project)[0], gated) + self._bias(project)[:, None]
            result[:, :, start : start + _POSITIONS] = chunk + _to_grid(narrow) / _ONE
        return out

    def _depth_conv(self, name: str, x: np.ndarray) -> np.ndarray:
        residual = self._conv(f"{name}.skip", x) if self._has(f"{name}.skip") else x
        mix, wise, project = f"{name}.mix", f"{name}.depthwise", f"{name}.project"
        if integer_kernels.available():
            result = integer_kernels.depth_conv(
                x,
                self._pointwise(mix),
                _SLOPES[0.01],
                self._weight(wise),
                self._bias(wise)[:, None],
                self._pointwise(project),
                added=residual,
                threads=self._threads,
            )
            if result is not None:
                return result
        return self._conv(project, self._conv(wise, _leaky(self._conv(mix, x), 0.01))) + residual

    def _block(self, name: str, x: np.ndarray) -> np.ndarray:
        return self._feed_forward(f"{name}.1", self._depth_conv(f"{name}.0", x))

    def _upsample(self, name: str, x: np.ndarray) -> np.ndarray:
        h = _leaky(_shuffle(self._conv(f"{name}.expand", x)), 0.01)
        return _leaky(self._conv(f"{name}.conv", h), 0.1) + _shuffle(self._conv(f"{name}.skip", x))

    def prior(self, z_hat: np.ndarray) -> np.ndarray:
        """Return h_s of z_hat `[B, N, h / 4, w / 4]`: the prior `[B, 3N, h, w]`."""
        x, layers = z_hat.astype(np.float64), (self._upsample,) * 2 + (self._block,) * 3
        for k, layer in enumerate(layers):
            x = layer(f"coder.hyper.synthesis.{k}", x)
        return x

    def gate(self, z_hat: np.ndarray, rate_index: np.ndarray, num_rates: int) -> np.ndarray:
        """Return rho `[B, 1, h, w]` of z_hat at rate indexes `[B]`; see `QuantizationGate`."""
        points = np.maximum(0, 1 - np.abs(rate_index.astype(np.float64)[:, None] - np.arange(num_rates)))
        b, _, h, w = z_hat.shape
        maps = np.broadcast_to(points[:, :, None, None], (b, num_rates, h, w))
        x = np.concatenate([z_hat.astype(np.float64), maps], 1)
        for k, layer in enumerate((self._upsample, self._upsample, self._depth_conv, self._conv)):
            x = layer(f"coder.gate.layers.{k}", x)
        return np.maximum(1 + x, 1)

    def split(self, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return steps, scales and means of step 0, and the reduced prior, `[B, N, h, w]` each."""
        steps, scales, means = np.split(prior, 3, axis=1)
        return np.maximum(steps, 0.5), scales, means, self._conv("coder.context.reduction", prior)

    def predict(self, k: int, y_hat: np.ndarray, reduced: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scales and means `[B, N, h, w]` of step k >= 1; see `QuadtreeContext.predict`."""
        x = self._block(f"coder.context.adaptors.{k - 1}", np.concatenate([y_hat, reduced], 1))
        for depth in range(self._depth):
            x = self._block(f"coder.context.shared.{depth}", x)
        scales, means = np.split(x, 2, axis=1)
        return scales, means


_NETWORKS = ("coder.hyper.synthesis.", "coder.context.", "coder.gate.")
_GATE = (
    *(f"coder.gate.layers.{k}.{layer}" for k in (0, 1) for layer in ("expand", "conv", "skip")),
    *(f"coder.gate.layers.2.{layer}" for layer in ("mix", "depthwise", "project")),
    "coder.gate.layers.3",
)


def _layers(depth: int) -> Iterator[str]:
    """Yield the convolutions that the networks must have."""
    for k in (0, 1):
        yield from (f"coder.hyper.synthesis.{k}.{layer}" for layer in ("expand", "conv", "skip"))
    blocks = [f"coder.hyper.synthesis.{k}" for k in (2, 3, 4)]
    blocks += [f"coder.context.adaptors.{k}" for k in range(STEPS - 1)]
    yield "coder.context.reduction"
    for block in chain(blocks, (f"coder.context.shared.{k}" for k in range(depth))):
        for layer in ("0.mix", "0.depthwise", "0.project", "1.expand", "1.project"):
            yield f"{block}.{layer}"


def depth_of(coder: Mapping[str, Any]) -> int:
    """Return the number of shared blocks of a coder's context model."""
    depth: int = coder["context"].get("depth", 3)
    return depth
