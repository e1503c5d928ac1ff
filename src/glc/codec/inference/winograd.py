"""3x3 convolutions in float32 with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Six by six inputs give four by four outputs through 36 products instead of 144 (Lavin and Gray, 2016). Its
rounding errors are some ten times those of a direct convolution in float32: far below what bfloat16 leaves,
and what is exact in this codec does not come here.

The transforms are sums of shifted views, the products one batched matrix product.
"""

import threading

import torch
from torch import Tensor, nn

TILE = 4
_INPUT = TILE + 2
_TILES_AT_ONCE = 384
"""Tiles whose transforms exist at a time: about what a cache holds of them."""
_IN_DOUBLE = 256 * 256
"""Products of input and output channels up to which weights are transformed in float64."""

_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


class _Latest(threading.local):
    """The transformed weights of the convolution that a thread is at: four times as many as its own.

    A network's convolutions run one after the other, each over a whole map: what one needs is made once for
    all bands, and never more than that is held.
    """

    owner: "WinogradConvolution | None" = None
    weights: Tensor | None = None


_latest = _Latest()


def forget() -> None:
    """Give back the memory of the last convolution of this thread."""
    _latest.owner = _latest.weights = None


class WinogradConvolution:
    """A 3x3 convolution of stride 1.

    Args:
        conv: the convolution; its padding is the caller's business. Its weights are not copied.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self._weight = conv.weight.detach()
        self.channels, self.in_channels = self._weight.shape[:2]
        self._bias = None if conv.bias is None else conv.bias.detach().float()

    def _weights(self) -> Tensor:
        if _latest.owner is not self or _latest.weights is None:
            forget()  # before asking for more
            _latest.weights, _latest.owner = self._transformed(), self
        return _latest.weights

    def _transformed(self) -> Tensor:
        dtype = torch.float64 if self.channels * self.in_channels <= _IN_DOUBLE else torch.float32
        kernel = torch.tensor(_KERNEL, dtype=torch.float64)
        # Row-major over the kernel's columns, then rows: the order in which `_input` leaves its transforms.
        taps = self._weight.permute(3, 2, 1, 0).reshape(9, -1).to(dtype)
        made = torch.mm(torch.kron(kernel, kernel).to(dtype), taps)
        return made.view(36, self.in_channels, self.channels).float()

    def __call__(self, x: Tensor) -> Tensor:
        """Map `[1, C, H + 2, W + 2]`, float32, padded and channels-last, to `[1, out_channels, H, W]`."""
        rows = x.permute(0, 2, 3, 1)[0]
        height, width = rows.shape[0] - 2, rows.shape[1] - 2
        missing = (-height % TILE, -width % TILE)
        if any(missing):
            # Outputs that are not wanted come of it.
            rows = torch.nn.functional.pad(rows, (0, 0, 0, missing[1], 0, missing[0]))
        down, across = (rows.shape[0] - 2) // TILE, (rows.shape[1] - 2) // TILE
        out = torch.empty(down, TILE, across, TILE, self.channels)
        weights = self._weights()
        step = max(1, _TILES_AT_ONCE // across)
        memory = [torch.empty(0)] * 4
        for first in range(0, down, step):
            count = min(step, down - first)
            band = rows[TILE * first : TILE * (first + count) + 2]
            self._band(band, weights, out[first : first + count], memory)
        picture = out.view(TILE * down, TILE * across, -1)[:height, :width]
        return picture[None].permute(0, 3, 1, 2)

    def _band(self, band: Tensor, weights: Tensor, out: Tensor, memory: list[Tensor]) -> None:
        down, across = out.shape[0], out.shape[2]
        c, tiles = band.shape[2], down * across
        tall = _reuse(memory, 0, (_INPUT, down, band.shape[1], c))
        _input([band[k : k + TILE * (down - 1) + 1 : TILE] for k in range(_INPUT)], tall)
        both = _reuse(memory, 1, (_INPUT, _INPUT, down, across, c))
        _input([tall[:, :, k : k + TILE * (across - 1) + 1 : TILE] for k in range(_INPUT)], both)
        products = _reuse(memory, 2, (36, tiles, self.channels))
        torch.bmm(both.view(36, tiles, c), weights, out=products)
        if self._bias is not None:
            products[7] += self._bias  # the one product that every output has once
        half = _reuse(memory, 3, (TILE, _INPUT, down, across, self.channels))
        _output(products.view(_INPUT, _INPUT, down, across, -1), list(half))
        _output(half.transpose(0, 1), [out[:, k].permute(2, 0, 1, 3) for k in range(TILE)])


def _reuse(memory: list[Tensor], place: int, shape: tuple[int, ...]) -> Tensor:
    size = 1
    for side in shape:
        size *= side
    if memory[place].numel() < size:
        memory[place] = torch.empty(size)
    return memory[place][:size].view(shape)


def _input(d: list[Tensor], out: Tensor) -> None:
    """Transform six inputs into six."""
    a, b = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(a, b, out=out[1])
    torch.sub(a, b, out=out[2])
    torch.add(a.sub_(d[2]), d[0], alpha=4, out=out[0])
    torch.sub(d[4], d[2], out=a)
    torch.sub(d[3], d[1], out=b)
    torch.add(a, b, alpha=2, out=out[3])
    torch.sub(a, b, alpha=2, out=out[4])
    torch.sub(d[5], d[3], out=a)
    torch.sub(a, b, alpha=4, out=out[5])


def _output(m: Tensor, out: list[Tensor]) -> None:
    """Transform six products into four outputs."""
    p, q = m[1] + m[2], m[1] - m[2]
    s, u = m[3] + m[4], m[3] - m[4]
    torch.add(p, s, out=out[0])
    out[0].add_(m[0])
    torch.add(q, u, alpha=2, out=out[1])
    torch.add(p, s, alpha=4, out=out[2])
    torch.add(q, u, alpha=8, out=out[3])
    out[3].add_(m[5])
