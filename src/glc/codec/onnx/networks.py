"""E, g_a with h_a, g_s and D as ONNX graphs, built from a model's description and weights.

Height and width are free. The layers are those of `glc.layers.blocks` and `glc.models`; docs/bitstream.md
defines g_s and D. Weights keep their names.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from glc.codec.onnx.graph import FLOAT, INT64, Graph
from glc.errors import ArchitectureError

Weights = Mapping[str, np.ndarray]
Description = Mapping[str, Any]

_CLASSES = {
    "encoder": ("glc.models.autoencoder.Encoder",),
    "decoder": ("glc.models.autoencoder.Decoder",),
    "coder": ("glc.models.coder.TransformCoder", "glc.models.coder.IndicesMapCoder"),
    "hyper": ("glc.models.hyperprior.CategoricalHyperprior", "glc.models.hyperprior.FactorizedHyperprior"),
    "context": ("glc.models.context.QuadtreeContext",),
    "gate": ("glc.models.gate.QuantizationGate",),
}
_OUTSIDE = -1e30
"""Added to the scores of positions outside of the map."""


def check(description: Description) -> None:
    """Check that there are graphs for a model.

    Raises:
        ArchitectureError: it has another network than glc's own.
    """
    coder = description.get("coder")
    parts = {"encoder": description.get("encoder"), "decoder": description.get("decoder"), "coder": coder}
    if isinstance(coder, Mapping) and coder.get("_target_") == _CLASSES["coder"][0]:
        parts |= {"hyper": coder.get("hyper"), "context": coder.get("context")}
        if coder.get("gate") is not None:
            parts["gate"] = coder["gate"]
        for name in ("analysis", "synthesis"):
            if coder.get(name) is not None:
                raise ArchitectureError(f"its coder.{name} has no ONNX graph: only networks of glc have")
    for name, part in parts.items():
        target = part.get("_target_") if isinstance(part, Mapping) else part
        if target not in _CLASSES[name]:
            raise ArchitectureError(f"its {name} ({target}) has no ONNX graph: only networks of glc have")
    if description.get("refiner") is not None:
        raise ArchitectureError("its refiner has no ONNX graph")


def downsampling(description: Description) -> int:
    """Return f of an encoder or decoder."""
    stem: int = description.get("stem", 1)
    return stem << (len(description.get("multipliers", (1, 1, 2, 2, 4))) - 1)


class _Layers:
    """The layers of `glc.layers.blocks` as nodes; maps are `[B, C, H, W]`."""

    def __init__(self, graph: Graph, norm: str = "none") -> None:
        self.graph = graph
        self.kind = norm

    def conv(self, name: str, x: str, stride: int = 1, pads: Sequence[int] | None = None) -> str:
        weight = self.graph.weight(f"{name}.weight")
        out, ins, rows, columns = self.graph.shape(weight)
        around = [rows // 2, columns // 2] * 2 if pads is None else list(pads)
        group = out if ins == 1 and name.endswith("depthwise") else 1
        inputs = [x, weight]
        if self.graph.has(f"{name}.bias"):
            inputs.append(self.graph.weight(f"{name}.bias"))
        return self.graph.node(
            "Conv",
            *inputs,
            kernel_shape=[rows, columns],
            pads=around,
            strides=[stride, stride],
            group=group,
        )

    def skip(self, name: str, x: str) -> str:
        return self.conv(name, x) if self.graph.has(f"{name}.weight") else x

    def add(self, a: str, b: str) -> str:
        return self.graph.node("Add", a, b)

    def mul(self, a: str, b: str) -> str:
        return self.graph.node("Mul", a, b)

    def leaky(self, x: str, slope: float) -> str:
        return self.graph.node("LeakyRelu", x, alpha=slope)

    def silu(self, x: str) -> str:
        return self.mul(x, self.graph.node("Sigmoid", x))

    def rms(self, x: str, channels: int) -> str:
        """Return x over its root mean square over the channels."""
        g = self.graph
        # In ONNX Runtime a convolution is faster than ReduceMean over the channels.
        mean = g.node("Conv", self.mul(x, x), g.constant(np.full((1, channels, 1, 1), 1 / channels)))
        root = g.node("Sqrt", self.add(mean, g.constant(1e-6)))
        return self.mul(x, g.node("Reciprocal", root))

    def nearest_code(self, z: str) -> str:
        """Return the indices `[B, H, W]` of the codewords of C_h that are nearest to z."""
        g = self.graph
        codes = g.weight("coder.hyper.quantizer.embedding")
        # |z - e|^2 less |z|^2, which does not affect the minimum
        norms = g.node("ReduceSumSquare", codes, axes=[1], keepdims=0)
        products = g.node("MatMul", g.node("Transpose", z, perm=[0, 2, 3, 1]), g.node("Transpose", codes))
        distances = g.node("Sub", norms, self.mul(products, g.constant(2.0)))
        return g.node("ArgMin", distances, axis=-1, keepdims=0)

    def finite_scalars(self, z: str, levels: Sequence[int]) -> str:
        """Return the indices `[B, H, W]` of `glc.models.quantizer.FiniteScalarQuantizer`."""
        g = self.graph
        halves = (np.array(levels, np.float32)[:, None, None] - 1) / 2
        factors = np.cumprod([1, *levels[:-1]])[:, None, None]
        z = self.add(g.node("Tanh", self.conv("coder.hyper.reduce", z)), g.constant(1.0))
        numbers = g.node("Cast", g.node("Round", self.mul(z, g.constant(halves))), to=INT64)
        return g.node("ReduceSum", self.mul(numbers, g.constant(factors)), g.constant([1]), keepdims=0)

    def norm(self, name: str, x: str) -> str:
        g = self.graph
        if self.kind == "none":
            return x
        channels = g.shape(f"{name}.weight")[0]
        if self.kind == "pixel":
            x = self.rms(x, channels)
        else:
            groups = int(np.gcd(32, channels))
            ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
            size = g.node("Shape", x)
            x = g.node("Reshape", x, g.constant([0, groups, -1]))
            x = g.node("InstanceNormalization", x, g.constant(ones), g.constant(zeros), epsilon=1e-6)
            x = g.node("Reshape", x, size)
        # x * weight + bias in one pass
        unit = g.constant(np.zeros(channels, np.float32)), g.constant(np.ones(channels, np.float32))
        weight, bias = g.weight(f"{name}.weight"), g.weight(f"{name}.bias")
        return g.node("BatchNormalization", x, weight, bias, *unit, epsilon=0.0)

    def residual(self, name: str, x: str) -> str:
        h = self.conv(f"{name}.conv1", self.silu(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", self.silu(self.norm(f"{name}.norm2", h)))
        return self.add(self.skip(f"{name}.skip", x), h)

    def double(self, name: str, x: str) -> str:
        scales = self.graph.constant(np.array([1, 1, 2, 2], np.float32))
        x = self.graph.node(
            "Resize",
            x,
            "",
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        return self.conv(f"{name}.conv", x)

    def shuffle(self, x: str, factor: int) -> str:
        return self.graph.node("DepthToSpace", x, blocksize=factor, mode="CRD") if factor > 1 else x

    def unshuffle(self, x: str, factor: int) -> str:
        if factor == 1:
            return x
        g = self.graph
        height, width = (
            g.node("Div", g.node("Shape", x, start=axis, end=axis + 1), g.constant([factor]))
            for axis in (2, 3)
        )
        r = g.constant([factor])
        x = self.reshape(x, g.constant([0, 3]), height, r, width, r)
        x = g.node("Transpose", x, perm=[0, 1, 3, 5, 2, 4])
        return self.reshape(x, g.constant([0, 3 * factor**2]), height, width)

    def reshape(self, x: str, *sizes: str) -> str:
        return self.graph.node("Reshape", x, self.graph.node("Concat", *sizes, axis=0))

    def attention(self, name: str, x: str, window: int | None) -> str:
        """Window attention: windows `[B, windows, positions, C]`, those at the edge padded and masked."""
        g = self.graph
        channels = g.shape(f"{name}.query.weight")[0]
        h = self.norm(f"{name}.norm", x)
        size = [g.node("Shape", x, start=axis, end=axis + 1) for axis in (2, 3)]
        side = size if window is None else [g.node("Min", s, g.constant([window])) for s in size]
        one, minus, zero = g.constant([1]), g.constant([-1]), g.constant([0])
        count = [
            g.node("Div", g.node("Sub", self.add(s, w), one), w) for s, w in zip(size, side, strict=True)
        ]
        padded = [self.mul(n, w) for n, w in zip(count, side, strict=True)]
        missing = [g.node("Sub", p, s) for p, s in zip(padded, size, strict=True)]
        pads = g.node("Concat", g.constant([0] * 6), *missing, axis=0)
        windows, tokens = self.mul(*count), self.mul(*side)
        cut = (count[0], side[0], count[1], side[1])
        wide = g.constant([channels])

        def windowed(part: str, perm: list[int], *tail: str) -> str:
            y = g.node("Pad", self.conv(f"{name}.{part}", h), pads)
            y = g.node("Transpose", self.reshape(y, zero, wide, *cut), perm=perm)
            return self.reshape(y, zero, windows, *tail)

        query = windowed("query", [0, 2, 4, 3, 5, 1], tokens, wide)
        key = windowed("key", [0, 2, 4, 1, 3, 5], wide, tokens)
        value = windowed("value", [0, 2, 4, 3, 5, 1], tokens, wide)
        scores = g.node("MatMul", self.mul(query, g.constant(float(channels**-0.5))), key)
        inside = g.node("Expand", g.constant(0.0), g.node("Concat", *size, axis=0))
        around = g.node("Concat", g.constant([0, 0]), *missing, axis=0)
        inside = g.node("Pad", inside, around, g.constant(_OUTSIDE))
        inside = g.node("Transpose", self.reshape(inside, *cut), perm=[0, 2, 1, 3])
        scores = self.add(scores, self.reshape(inside, windows, one, tokens))
        attended = g.node("MatMul", g.node("Softmax", scores, axis=-1), value)
        attended = self.reshape(attended, minus, count[0], count[1], side[0], side[1], wide)
        attended = g.node("Transpose", attended, perm=[0, 5, 1, 3, 2, 4])
        attended = self.reshape(attended, minus, wide, *padded)
        ends = g.node("Concat", *size, axis=0)
        attended = g.node("Slice", attended, g.constant([0, 0]), ends, g.constant([2, 3]))
        return self.add(x, self.conv(f"{name}.out", attended))

    def feed_forward(self, name: str, x: str) -> str:
        g = self.graph
        wide = self.conv(f"{name}.expand", x)
        half = g.shape(f"{name}.project.weight")[1]
        value, gate = (
            g.node("Slice", wide, g.constant([start]), g.constant([start + half]), g.constant([1]))
            for start in (0, half)
        )
        return self.add(x, self.conv(f"{name}.project", self.mul(value, self.leaky(gate, 0.1))))

    def depth_conv_block(self, name: str, x: str) -> str:
        h = self.leaky(self.conv(f"{name}.0.mix", x), 0.01)
        h = self.conv(f"{name}.0.project", self.conv(f"{name}.0.depthwise", h))
        return self.feed_forward(f"{name}.1", self.add(h, self.skip(f"{name}.0.skip", x)))

    def gated_block(self, name: str, x: str) -> str:
        h = self.conv(f"{name}.0.depthwise", self.leaky(self.conv(f"{name}.0.mix", x), 0.01))
        h = self.conv(f"{name}.0.project", self.mul(h, self.conv(f"{name}.0.gate", x)))
        return self.feed_forward(f"{name}.1", self.add(self.skip(f"{name}.0.skip", x), h))

    def rate_transform(self, name: str, x: str, rate: str) -> str:
        g = self.graph
        scale = g.weight(f"{name}.scaler.scale")
        points, channels = g.shape(scale)
        floor = g.node("Floor", rate)
        low = g.node("Cast", floor, to=INT64)
        high = g.node("Min", self.add(low, g.constant([1])), g.constant([points - 1]))
        start, end = (g.node("Gather", scale, index, axis=0) for index in (low, high))
        fraction = g.node("Reshape", g.node("Sub", rate, floor), g.constant([-1, 1]))
        scale = self.add(start, self.mul(fraction, g.node("Sub", end, start)))
        for block in (0, 1):
            x = self.gated_block(f"{name}.head.{block}", x)
        x = self.mul(x, g.node("Reshape", scale, g.constant([-1, channels, 1, 1])))
        for block in (0, 1):
            x = self.gated_block(f"{name}.tail.{block}", x)
        return x


def encoder(description: Description, weights: Weights) -> Graph:
    """Return E: `x` `[B, 3, H, W]` in [-1, 1] to `l`; see `glc.models.autoencoder.Encoder`."""
    g = Graph("glc encoder: E", weights)
    layers = _Layers(g, description.get("norm", "group"))
    multipliers, stem = description.get("multipliers", (1, 1, 2, 2, 4)), description.get("stem", 1)
    window = description.get("window", 32)
    run = _Run(layers, "encoder.blocks", g.input("x", FLOAT, ("batch", 3, "height", "width")))
    if stem > 1:
        run.apply(lambda _, x: layers.unshuffle(x, stem))
    run.apply(layers.conv)
    for level in range(len(multipliers)):
        last = level == len(multipliers) - 1
        for _ in range(description.get("num_blocks", 2)):
            run.apply(layers.residual)
            if last and description.get("level_attention", True):
                run.apply(lambda name, x: layers.attention(name, x, window))
        if not last:
            run.apply(lambda name, x: layers.conv(f"{name}.conv", x, stride=2, pads=(0, 0, 1, 1)))
    run.middle(window)
    run.apply(layers.norm)
    if description.get("out_activation", True):
        run.apply(lambda _, x: layers.silu(x))
    run.apply(layers.conv)
    if description.get("projection", True):
        run.apply(layers.conv)
    latent = ("batch", description.get("latent_channels", 256), "latent_height", "latent_width")
    g.output("l", g.node("Tanh", run.x) if description.get("bounded") else run.x, FLOAT, latent)
    return g


def decoder(description: Description, weights: Weights) -> Graph:
    """Return D: `l_hat` to `x_hat` `[B, 3, H, W]`; see `glc.models.autoencoder.Decoder`."""
    g = Graph("glc decoder: D", weights)
    layers = _Layers(g, description.get("norm", "group"))
    multipliers, stem = description.get("multipliers", (1, 1, 2, 2, 4)), description.get("stem", 1)
    window, fine = description.get("window", 32), description.get("fine_blocks", 0)
    latent = ("batch", description.get("latent_channels", 256), "latent_height", "latent_width")
    run = _Run(layers, "decoder.blocks", g.input("l_hat", FLOAT, latent))
    if description.get("projection", True):
        run.apply(layers.conv)
    run.apply(layers.conv)
    run.middle(window)
    for level in reversed(range(len(multipliers))):
        for _ in range(description.get("num_blocks", 3)):
            run.apply(layers.residual)
            if level == len(multipliers) - 1 and description.get("level_attention", True):
                run.apply(lambda name, x: layers.attention(name, x, window))
        if level > 0:
            run.apply(layers.double)
    run.apply(layers.norm)
    if description.get("out_activation", True):
        run.apply(lambda _, x: layers.silu(x))
    run.apply(layers.conv)
    if fine:
        if stem > 2:
            run.apply(lambda _, x: layers.shuffle(x, stem // 2))
        for _ in range(fine):
            run.apply(layers.residual)
        run.apply(layers.conv)
    g.output("x_hat", layers.shuffle(run.x, 2 if fine else stem), FLOAT, ("batch", 3, "height", "width"))
    return g


def analysis(description: Description, weights: Weights) -> Graph:
    """Return g_a and h_a: `l` and rate indexes `rate` `[B]` to `y`, and to `z`: indices, or integers.

    z is int64: categorical `[B, h / 4, w / 4]`; factorised `[B, N, h / 4, w / 4]`.
    """
    g = Graph("glc analysis: g_a, h_a", weights)
    layers = _Layers(g)
    latent = ("batch", description.get("latent_channels", 256), "latent_height", "latent_width")
    rate = g.input("rate", FLOAT, ("batch",))
    y = layers.rate_transform("coder.analysis", g.input("l", FLOAT, latent), rate)
    n, hyper = description["context"]["channels"], description["hyper"]
    z = layers.depth_conv_block("coder.hyper.analysis.0", y)
    z = layers.leaky(layers.conv("coder.hyper.analysis.1", z, stride=2), 0.01)
    z = layers.conv("coder.hyper.analysis.3", z, stride=2)
    small: tuple[int | str, ...] = ("batch", "hyper_height", "hyper_width")
    if "codebook_size" in hyper:
        z = layers.rms(z, n) if hyper.get("normalize") else z
        z = layers.finite_scalars(z, hyper["levels"]) if hyper.get("levels") else layers.nearest_code(z)
    else:
        z, small = g.node("Cast", g.node("Round", z), to=INT64), ("batch", n, *small[1:])
    g.output("y", y, FLOAT, ("batch", n, "latent_height", "latent_width"))
    g.output("z", z, INT64, small)
    return g


def synthesis(description: Description, weights: Weights) -> Graph:
    """Return g_s: `y_hat` and rate indexes `rate` `[B]` to `l_hat`."""
    g = Graph("glc synthesis: g_s", weights)
    shape = ("batch", description["context"]["channels"], "latent_height", "latent_width")
    y_hat, rate = g.input("y_hat", FLOAT, shape), g.input("rate", FLOAT, ("batch",))
    l_hat = _Layers(g).rate_transform("coder.synthesis", y_hat, rate)
    g.output("l_hat", l_hat, FLOAT, ("batch", description.get("latent_channels", 256), *shape[2:]))
    return g


class _Run:
    """Applies the blocks of an auto-encoder in turn; each has the next number, also those without weights."""

    def __init__(self, layers: _Layers, prefix: str, x: str) -> None:
        self.layers, self.prefix, self.x = layers, prefix, x
        self._number = 0

    def apply(self, layer: Callable[[str, str], str]) -> None:
        self.x = layer(f"{self.prefix}.{self._number}", self.x)
        self._number += 1

    def middle(self, window: int | None) -> None:
        self.apply(self.layers.residual)
        self.apply(lambda name, x: self.layers.attention(name, x, window))
        self.apply(self.layers.residual)
