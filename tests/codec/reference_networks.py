"""Parts 6 and 7 of `docs/bitstream.md`, written from its text alone.

Maps are `[C, h, w]`: integers in coarse or fine units up to y_hat, float64 after it.
"""

import numpy as np

from tests.codec.reference_weights import Ints, Weights

LIMIT = 1 << 26


def rne(a: Ints, s: int) -> Ints:
    """Return a / 2^s, rounded to nearest, halves to even."""
    return (a + (1 << s - 1) - 1 + (a >> s & 1)) >> s


def clamp(a: Ints) -> Ints:
    """Return the coarse map within its range."""
    return np.clip(a, -LIMIT, LIMIT)


def to_coarse(t: Ints) -> Ints:
    """R: return a fine map on the coarse grid."""
    return clamp(rne(t, 14))


def to_fine(u: Ints) -> Ints:
    """Return a coarse map in fine units."""
    return u << 14


def leaky(u: Ints, slope: int) -> Ints:
    """Return a coarse map with its negative values times a slope, fine."""
    return np.where(u >= 0, u << 14, u * slope)


def gated(v: Ints, g: Ints) -> Ints:
    """Return the product of v and leaky_0.1(g), coarse like both."""
    return clamp(np.where(g >= 0, rne(v * g, 12), rne(v * g * 1638, 26)))


def shuffle(x: np.ndarray, r: int = 2) -> np.ndarray:
    """Return `[C, r h, r w]` from `[r^2 C, h, w]`."""
    c, h, w = len(x) // r**2, *x.shape[1:]
    return x.reshape(c, r, r, h, w).transpose(0, 3, 1, 4, 2).reshape(c, r * h, r * w)


def correlate(weight: np.ndarray, x: np.ndarray, depthwise: bool) -> np.ndarray:
    """Return the sums of a convolution without its bias; the map is zero outside."""
    side = weight.shape[-1]
    if side == 1:
        return np.einsum("oi,ihw->ohw", weight[:, :, 0, 0], x)
    padded = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    if depthwise:
        return np.einsum("cyx,chwyx->chw", weight[:, 0], windows)
    return np.einsum("oiyx,ihwyx->ohw", weight, windows)


class Networks:
    """The integer networks. Maps between blocks are fine, the input of `conv` is coarse."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def conv(self, name: str, x: Ints) -> Ints:
        """Coarse to coarse."""
        weight = self.weights.scaled(f"{name}.weight", 14)
        bias = self.weights.scaled(f"{name}.bias", 26)
        if (np.abs(weight).sum((1, 2, 3)) * LIMIT + np.abs(bias)).max() >= 1 << 53:
            raise ValueError(f"weights of {name} are too large")
        return clamp(rne(correlate(weight, clamp(x), name.endswith("depthwise")) + bias[:, None, None], 14))

    def depth_conv(self, name: str, x: Ints) -> Ints:
        a = to_coarse(leaky(self.conv(f"{name}.mix", to_coarse(x)), 164))
        b = self.conv(f"{name}.project", self.conv(f"{name}.depthwise", a))
        if f"{name}.skip.weight" in self.weights.tensors:
            x = to_fine(self.conv(f"{name}.skip", to_coarse(x)))
        return x + to_fine(b)

    def block(self, name: str, x: Ints) -> Ints:
        """DepthConv, then FeedForward."""
        x = self.depth_conv(f"{name}.0", x)
        v, g = np.split(self.conv(f"{name}.1.expand", to_coarse(x)), 2)
        return x + to_fine(self.conv(f"{name}.1.project", gated(v, g)))

    def upsample(self, name: str, x: Ints) -> Ints:
        """Return a map of twice the sides."""
        a = to_coarse(leaky(shuffle(self.conv(f"{name}.expand", to_coarse(x))), 164))
        skip = shuffle(self.conv(f"{name}.skip", to_coarse(x)))
        return leaky(self.conv(f"{name}.conv", a), 1638) + to_fine(skip)

    def z_hat(self, z: Ints) -> Ints:
        """Return `[N, h/4, w/4]`, coarse."""
        if self.weights.factorized:
            return z << 12
        embedding = clamp(self.weights.scaled("coder.hyper.quantizer.embedding", 12))
        return embedding[z].transpose(2, 0, 1)

    def gate(self, z: Ints, rate_index: int) -> Ints:
        """Return rho `[1, h, w]`, coarse."""
        z_hat = self.z_hat(z)
        points = [max(0, 4096 - abs(rate_index - 4096 * k)) for k in range(self.weights.num_rates)]
        maps = np.broadcast_to(np.array(points)[:, None, None], (len(points), *z_hat.shape[1:]))
        x = to_fine(np.concatenate([z_hat, maps]))
        for k in (0, 1):
            x = self.upsample(f"coder.gate.layers.{k}", x)
        x = self.depth_conv("coder.gate.layers.2", x)
        return np.maximum(4096 + self.conv("coder.gate.layers.3", to_coarse(x)), 4096)

    def prior(self, z: Ints) -> Ints:
        """Return `[3N, h, w]`, coarse."""
        x = to_fine(self.z_hat(z))
        for k, layer in enumerate((self.upsample, self.upsample, self.block, self.block, self.block)):
            x = layer(f"coder.hyper.synthesis.{k}", x)
        return x >> 14

    def context(self, step: int, known: Ints, reduced: Ints) -> tuple[Ints, Ints]:
        """Return scales and means for a step after the first, coarse."""
        x = self.block(f"coder.context.adaptors.{step - 1}", to_fine(np.concatenate([known, reduced])))
        for k in range(self.weights.coder["context"].get("depth", 3)):
            x = self.block(f"coder.context.shared.{k}", x)
        scale, mean = np.split(x >> 14, 2)
        return scale, mean


class FloatNetwork:
    """A network in floating point, which follows y_hat."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def conv(self, name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = self.weights.real(f"{name}.weight"), self.weights.real(f"{name}.bias")
        return correlate(weight, x, name.endswith("depthwise")) + bias[:, None, None]

    def skip(self, name: str, x: np.ndarray) -> np.ndarray:
        """Return x, or its convolution where there is one."""
        return self.conv(name, x) if f"{name}.weight" in self.weights.tensors else x


class Synthesis(FloatNetwork):
    """The transform g_s."""

    def gated_block(self, name: str, x: np.ndarray) -> np.ndarray:
        a = self.conv(f"{name}.0.mix", x)
        a = self.conv(f"{name}.0.depthwise", np.where(a >= 0, a, a * 0.01))
        a = self.conv(f"{name}.0.project", a * self.conv(f"{name}.0.gate", x))
        x = a + self.skip(f"{name}.0.skip", x)
        v, g = np.split(self.conv(f"{name}.1.expand", x), 2)
        return x + self.conv(f"{name}.1.project", v * np.where(g >= 0, g, g * 0.1))

    def __call__(self, y_hat: Ints, rate_index: int) -> np.ndarray:
        """Return l_hat."""
        scales = self.weights.real("coder.synthesis.scaler.scale")
        low, part = rate_index // 4096, rate_index % 4096 / 4096
        scale = scales[low] + part * (scales[min(low + 1, len(scales) - 1)] - scales[low])
        x = np.ldexp(y_hat.astype(np.float64), -24)
        x = self.gated_block("coder.synthesis.head.1", self.gated_block("coder.synthesis.head.0", x))
        x = x * scale[:, None, None]
        return self.gated_block("coder.synthesis.tail.1", self.gated_block("coder.synthesis.tail.0", x))


def latents(weights: Weights, y: Ints, y_hat: Ints | None, rate_index: int) -> np.ndarray:
    """Return l_hat `[C, h, w]` of either coder."""
    if y_hat is None:
        return weights.real(f"coder.codebooks.{rate_index // 4096}.embedding")[y].transpose(2, 0, 1)
    return Synthesis(weights)(y_hat, rate_index)
