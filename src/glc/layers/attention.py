"""Self-attention over latents, in windows or over the whole map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.layers.blocks import make_norm


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
