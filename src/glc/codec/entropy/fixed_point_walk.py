"""The walk of the context model over a large latent, with maps of a fraction of the memory."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from glc.codec.entropy.row_tiling import halo, in_row_tiles
from glc.codec.entropy.tables import ACTIVATION_BITS
from glc.models.context import QuadtreeContext
from glc.models.quadtree import STEPS

BYTES_PER_ELEMENT = 40
"""Memory per element of y, the entropy coder's included; measured at 8192 x 8192."""
LARGE = 1 << 23
"""Elements of y above which this walk replaces `QuadtreeContext.walk`: 87,000 positions of `small`."""
TILE_ELEMENTS = 1 << 22
"""As of `glc.codec.entropy.row_tiling`; half of it, because networks hold several maps of a tile."""
UNIT = 1 << ACTIVATION_BITS
"""Units in 1: maps are in units of the activations' grid."""


class FixedPointWalk:
    """Computes what `QuadtreeContext.walk` yields, and the same integers.

    The results of integer networks are multiples of 2^-12 below 2^18, so int32 holds them in half the memory
    of float64. The prior, three times as wide as y, exists for some rows at a time, and so do symbols'
    residuals and sums.

    ```
    z_hat --tiles of rows--> quant_step, reduced; indexes, means of step 0
    for k = 0 .. 3:  set(symbols of step k);  [y_hat, reduced] --tiles of rows--> indexes, means of step k + 1
    ```

    Args:
        context: the context model with integer networks of glc.
        synthesis: h_s, as an integer network of glc.
        indexes: maps scales to table indexes.
        z_hat: `[B, N, h / stride, w / stride]`.
        stride: positions of y per position of z along a side; even.
    """

    def __init__(
        self,
        context: QuadtreeContext,
        synthesis: torch.nn.Module,
        indexes: Callable[[Tensor], Tensor],
        z_hat: Tensor,
        stride: int,
    ) -> None:
        self._context, self._indexes = context, indexes

        def start(z_hat: Tensor) -> tuple[Tensor, ...]:
            quant_step, scales, means, reduced = context.split_prior(synthesis(z_hat))
            return _fixed(quant_step), self._table_indexes(scales), _fixed(means), _fixed(reduced)

        radius = halo(synthesis, context.reduction)
        self._quant_step, self.indexes, self._means, self._reduced = in_row_tiles(
            start, (z_hat,), radius, stride, TILE_ELEMENTS
        )
        """Of the present step: `indexes` are table indexes, uint8 `[B, N, h, w]`."""
        self._y_hat = torch.zeros_like(self._means)
        self.y: Tensor | None = None
        """y of an encoder, `[B, N, h, w]`."""
        rows = TILE_ELEMENTS // 4 // self._means[:, :, 0].numel()
        self._rows = max(2, rows // 2 * 2)  # even, so that all tiles have the same masks
        self._masks = context.masks(self._rows, self._means.shape[3], self._means.device)

    def _table_indexes(self, scales: Tensor) -> Tensor:
        return self._indexes(scales).to(torch.uint8)

    def tiles(self) -> Iterator[slice]:
        """Yield the rows of tiles."""
        for start in range(0, self._means.shape[2], self._rows):
            yield slice(start, min(start + self._rows, self._means.shape[2]))

    def mask(self, k: int, rows: slice) -> Tensor:
        """Return the elements of step k in a tile, boolean `[1, N, rows, w]`."""
        return self._masks[k, :, :, : rows.stop - rows.start]

    def complete_mask(self, k: int) -> Tensor:
        """Return the elements of step k, boolean `[1, N, h, w]`."""
        height = self._y_hat.shape[2]
        return self._masks[k].repeat(1, 1, -(-height // self._rows), 1)[:, :, :height]

    def residual(self, rows: slice) -> Tensor:
        """Return `y / quant_step - means` of a tile, float64."""
        assert self.y is not None
        quant_step, means = _value(self._quant_step[:, :, rows]), _value(self._means[:, :, rows])
        return self.y[:, :, rows].double().div_(quant_step).sub_(means)

    def set(self, k: int, rows: slice, symbols: Tensor) -> None:
        """Set the symbols of step k in a tile, int32 `[B, N, rows, w]`; others are ignored."""
        y_hat = self._y_hat[:, :, rows]
        coded = symbols.mul(UNIT).add_(self._means[:, :, rows])
        y_hat.copy_(torch.where(self.mask(k, rows), coded, y_hat))

    def advance(self, k: int) -> None:
        """Predict the distributions of step k, after the symbols of step k - 1 were set."""
        if k == STEPS:
            return

        def predict(y_hat: Tensor, reduced: Tensor) -> tuple[Tensor, ...]:
            scales, means = self._context.predict(k, _value(y_hat), _value(reduced))
            return self._table_indexes(scales), _fixed(means)

        radius = halo(self._context.adaptors[k - 1], self._context.shared)
        # Freed before their successors are allocated.
        self.indexes = self._means = torch.empty(0)
        self.indexes, self._means = in_row_tiles(
            predict, (self._y_hat, self._reduced), radius, most=TILE_ELEMENTS
        )

    def free(self) -> None:
        """Free all maps that `finish` does not need."""
        self.y = None
        self.indexes = self._means = self._reduced = torch.empty(0)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return y_hat, float32, and the quantisation steps in units of 2^-12, int32, after the last step."""
        self.free()
        y_hat = torch.empty(self._y_hat.shape, device=self._y_hat.device)
        for start in range(0, y_hat.shape[2], self._rows):
            rows = slice(start, start + self._rows)
            y_hat[:, :, rows] = _value(self._y_hat[:, :, rows]).mul_(_value(self._quant_step[:, :, rows]))
        self._y_hat = torch.empty(0)
        return y_hat, self._quant_step


def _fixed(x: Tensor) -> Tensor:
    """Return multiples of the activations' grid as integers."""
    return x.mul(UNIT).to(torch.int32)


def _value(x: Tensor) -> Tensor:
    return x.double().mul_(1 / UNIT)
