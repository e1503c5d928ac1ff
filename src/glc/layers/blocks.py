"""Normalisation, convolutional blocks and attention of the auto-encoder and of the transform coder."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PixelNorm(nn.Module):
    """Root-mean-square normalisation over the channels of each position, with a learned gain and bias.

    Unlike group normalisation it is local: the network keeps a finite receptive field, so an image can be
    processed in tiles and a crop gives the same result as the full image.

    Args:
        channels: C.
        eps: added to the mean square.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.kernel: Callable[[Tensor, Tensor, Tensor, float, bool], Tensor | None] | None = None
        """Computes the same faster: of the input, weight, bias, eps, and whether swish follows. It returns
        None for inputs that it does not accept."""

    def forward(self, x: Tensor, swish: bool = False) -> Tensor:
        """Map `[B, C, H, W]` to `[B, C, H, W]`, followed by swish if asked for."""
        if self.kernel is not None:
            y = self.kernel(x, self.weight, self.bias, self.eps, swish)
            if y is not None:
                return y
        # The channel axis is contiguous in channels-last memory; rms_norm then needs no copy.
        y = nn.functional.rms_norm(x.permute(0, 2, 3, 1), x.shape[1:2], self.weight.to(x.dtype), self.eps)
        y = (y + self.bias.to(x.dtype)).permute(0, 3, 1, 2)
        return F.silu(y) if swish else y


def normalize_swish(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a normalisation of `make_norm`, then swish, to `[B, C, H, W]`."""
    return norm(x, swish=True) if isinstance(norm, PixelNorm) else F.silu(norm(x))


def make_norm(kind: str, channels: int) -> nn.Module:
    """Return a normalisation over `[B, channels, H, W]`.

    Args:
        kind: `group` (32 groups as in VQGAN; fewer if 32 does not divide the channels),
            `pixel` (`PixelNorm`) or `none`.
        channels: C.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)
    if kind == "pixel":
        return PixelNorm(channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm must be group, pixel or none, got {kind!r}")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after normalisation and swish, with a residual connection.

    ```
    x -> norm -> swish -> 3x3 -> norm -> swish -> 3x3 -> + (x, or 1x1(x) when the width changes)
    ```
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str = "group") -> None:
        super().__init__()
        self.norm1 = make_norm(norm, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = make_norm(norm, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, out_channels, H, W]`."""
        h = self.conv1(normalize_swish(self.norm1, x))
        h = self.conv2(normalize_swish(self.norm2, h))
        return self.skip(x) + h


class Downsample(nn.Module):
    """Halve height and width by a 3x3 convolution of stride 2, padded at the right and lower edge only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, C, H / 2, W / 2]`."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width by nearest-neighbour upsampling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, C, 2 H, 2 W]`."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def start_small(layer: nn.Conv2d, factor: float = 0.1) -> nn.Conv2d:
    """Scale down the initial weights of the last layer of a gated branch, and return the layer.

    A gate multiplies two functions of its input, so a stack of gated branches raises a large input to a high
    power. With small initial weights, residual branches start close to the identity and stay finite.
    """
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(factor)
    return layer


class GatedFeedForward(nn.Module):
    """Position-wise feed-forward layer: one half of the expanded channels gates the other.

    ```
    x -> 1x1 (C -> 4C) -> split a, b -> a * leaky(b) -> 1x1 (2C -> C) -> + x
    ```
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.act = nn.LeakyReLU(0.1)
        self.project = start_small(nn.Conv2d(2 * channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, C, H, W]`."""
        value, gate = self.expand(x).chunk(2, 1)
        return x + self.project(value * self.act(gate))


class DepthConv(nn.Module):
    """Depth-wise separable residual layer of the entropy model (paper section 8.2).

    ```
    x -> 1x1 -> leaky -> depth-wise 3x3 -> 1x1 -> + (x, or 1x1(x) when the width changes)
    ```
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(in_channels, in_channels, 1)
        self.act = nn.LeakyReLU(0.01)
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels)
        self.project = nn.Conv2d(in_channels, out_channels, 1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, out_channels, H, W]`."""
        return self.project(self.depthwise(self.act(self.mix(x)))) + self.skip(x)


class GatedDepthConv(nn.Module):
    """Depth-wise separable residual layer of the transforms, gated by a second branch (paper section 8.2).

    ```
    x -> 1x1 -> leaky -> depth-wise 3x3 --*-> 1x1 -> + (x, or 1x1(x) when the width changes)
     \\-> 1x1 ----------------------------/
    ```
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(in_channels, out_channels, 1)
        self.act = nn.LeakyReLU(0.01)
        self.depthwise = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels)
        self.gate = nn.Conv2d(in_channels, out_channels, 1)
        self.project = start_small(nn.Conv2d(out_channels, out_channels, 1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, out_channels, H, W]`."""
        h = self.depthwise(self.act(self.mix(x))) * self.gate(x)
        return self.skip(x) + self.project(h)


class DepthConvBlock(nn.Sequential):
    """`DepthConv` then `GatedFeedForward`: the block of the hyperprior and of the context model."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(DepthConv(in_channels, out_channels), GatedFeedForward(out_channels))


class GatedDepthConvBlock(nn.Sequential):
    """`GatedDepthConv` then `GatedFeedForward`: the block of the transforms g_a and g_s."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(GatedDepthConv(in_channels, out_channels), GatedFeedForward(out_channels))


class SubpixelUpsample(nn.Module):
    """Residual doubling of height and width by pixel shuffling (hyper-synthesis, paper section 8.2).

    ```
    x -> 1x1 (C -> 4C) -> shuffle -> leaky -> 3x3 -> leaky -> + shuffle(1x1(x))
    ```
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(in_channels, 4 * out_channels, 1)
        self.act1 = nn.LeakyReLU(0.01)
        self.conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.act2 = nn.LeakyReLU(0.1)
        self.skip = nn.Conv2d(in_channels, 4 * out_channels, 1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, out_channels, 2 H, 2 W]`."""
        h = self.act2(self.conv(self.act1(self.shuffle(self.expand(x)))))
        return h + self.shuffle(self.skip(x))


def partition_windows(x: Tensor, window: int) -> tuple[Tensor, Tensor | None]:
    """Cut a map into non-overlapping windows, aligned to its top left corner.

    Args:
        x: `[B, C, H, W]`.
        window: side of a window, at least 1; clamped to each side of the map.

    Returns:
        The windows as tokens `[B * nH * nW, h * w, C]`, and a boolean mask `[B * nH * nW, h * w]` that is
        False at positions outside the map, or None when the windows tile the map exactly.
    """
    b, c, height, width = x.shape
    h, w = min(window, height), min(window, width)
    rows, cols = -(-height // h), -(-width // w)
    pad = (0, cols * w - width, 0, rows * h - height)
    tokens = F.pad(x, pad).view(b, c, rows, h, cols, w).permute(0, 2, 4, 3, 5, 1)
    tokens = tokens.reshape(b * rows * cols, h * w, c)
    if pad == (0, 0, 0, 0):
        return tokens, None
    inside = F.pad(x.new_ones(1, 1, height, width, dtype=torch.bool), pad, value=False)
    inside = inside.view(rows, h, cols, w).transpose(1, 2).reshape(rows * cols, h * w)
    return tokens, inside.repeat(b, 1)


def merge_windows(tokens: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """Undo `partition_windows`: tokens `[B * nH * nW, h * w, C]` back to a map `[B, C, H, W]` of `size`."""
    height, width = size
    h, w = min(window, height), min(window, width)
    rows, cols = -(-height // h), -(-width // w)
    c = tokens.shape[-1]
    x = tokens.view(-1, rows, cols, h, w, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(-1, c, rows * h, cols * w)[:, :, :height, :width]


class WindowAttention(nn.Module):
    """Single-head self-attention with a residual connection (paper Table 4).

    In training mode attention is global: training crops are no larger than a window. In evaluation mode each
    window attends to itself, which bounds the cost on large images; all windows run in one batched call.
    Windows at the right and lower edge may be smaller.

    ```
    x -> norm -> q, k, v (1x1) -> softmax(q k^T / sqrt(C)) v per window -> 1x1 -> + x
    ```

    Args:
        channels: C, the width of the map.
        window: side of a window in latent positions at evaluation (32 in the paper; 16 and 64 in its
            ablation), or None for global attention.
        norm: kind of normalisation, see `make_norm`.

    Raises:
        ValueError: for a window less than 1.
    """

    def __init__(self, channels: int, window: int | None = 32, norm: str = "group") -> None:
        super().__init__()
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 or None for global attention, got {window}")
        self.window = window
        self.norm = make_norm(norm, channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, C, H, W]`."""
        size = (x.shape[-2], x.shape[-1])
        window = max(size) if self.training or self.window is None else self.window
        h = self.norm(x)
        query, mask = partition_windows(self.query(h), window)
        key, _ = partition_windows(self.key(h), window)
        value, _ = partition_windows(self.value(h), window)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if mask is None else mask[:, None, :]
        )
        return x + self.out(merge_windows(attended, window, size))
