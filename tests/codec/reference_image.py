"""D in float64, written from docs/bitstream.md alone."""

import math
from typing import Any

import numpy as np

from tests.codec.reference_networks import FloatNetwork, shuffle
from tests.codec.reference_weights import Weights

DEFAULTS: dict[str, Any] = {
    "multipliers": [1, 1, 2, 2, 4],
    "num_blocks": 3,
    "stem": 1,
    "norm": "group",
    "level_attention": True,
    "window": 32,
    "out_activation": True,
    "projection": True,
    "fine_blocks": 0,
}


def silu(u: np.ndarray) -> np.ndarray:
    return u / (1 + np.exp(-u))


class Drawing(FloatNetwork):
    """D of a weights file."""

    def __init__(self, weights: Weights, description: dict[str, Any]) -> None:
        super().__init__(weights)
        self.of = {**DEFAULTS, **description}

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        if self.of["norm"] == "none":
            return x
        if self.of["norm"] == "pixel":
            y = x / np.sqrt((x**2).mean(0) + 1e-6)
        else:
            groups = x.reshape(math.gcd(32, len(x)), -1)
            mean, variance = groups.mean(1, keepdims=True), groups.var(1, keepdims=True)
            y = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
        w, b = self.weights.real(f"{name}.weight"), self.weights.real(f"{name}.bias")
        return y * w[:, None, None] + b[:, None, None]

    def residual(self, name: str, x: np.ndarray) -> np.ndarray:
        a = self.conv(f"{name}.conv1", silu(self.norm(f"{name}.norm1", x)))
        a = self.conv(f"{name}.conv2", silu(self.norm(f"{name}.norm2", a)))
        return a + self.skip(f"{name}.skip", x)

    def attention(self, name: str, x: np.ndarray) -> np.ndarray:
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h) for part in ("query", "key", "value"))
        size = self.of["window"] or max(x.shape[1:])
        out = np.empty_like(x)
        for row in range(0, x.shape[1], size):
            for col in range(0, x.shape[2], size):
                place = np.s_[:, row : row + size, col : col + size]
                tokens = [part[place].reshape(len(x), -1) for part in (q, k, v)]
                weights = np.exp(tokens[0].T @ tokens[1] / math.sqrt(len(x)))
                weights /= weights.sum(1, keepdims=True)
                out[place] = (tokens[2] @ weights.T).reshape(out[place].shape)
        return x + self.conv(f"{name}.out", out)

    def double(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.conv(f"{name}.conv", x.repeat(2, 1).repeat(2, 2))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return x_hat for l_hat."""
        of, last = self.of, len(self.of["multipliers"]) - 1
        order: list[Any] = [self.conv] if of["projection"] else []
        order += [self.conv, self.residual, self.attention, self.residual]
        for level in range(last, -1, -1):
            attended = level == last and of["level_attention"]
            order += [self.residual, *([self.attention] if attended else [])] * of["num_blocks"]
            order += [self.double] if level > 0 else []
        order += [self.norm, *([lambda _, x: silu(x)] if of["out_activation"] else []), self.conv]
        fine, half = of["fine_blocks"], of["stem"] // 2
        if fine:
            order += [lambda _, x: shuffle(x, half)] if half > 1 else []
            order += [*[self.residual] * fine, self.conv, lambda _, x: shuffle(x, 2)]
        elif of["stem"] > 1:
            order.append(lambda _, x: shuffle(x, of["stem"]))
        for number, block in enumerate(order):
            x = block(f"decoder.blocks.{number}", x)
        return x
