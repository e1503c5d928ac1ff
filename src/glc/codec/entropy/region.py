"""Choice of the symbols of y by rate and distortion, outside of a region of interest."""

import math
from collections.abc import Sequence

import numpy as np

from glc.codec.entropy.tables import PRECISION, SYMBOL_LIMIT, Table

STRENGTH = 0.15
"""Squared error, in squared quantisation steps, that saving one bit may cost where the weight is 0. Chosen on
six Kodak images with `small`; docs/codec.md has what it gains and costs."""
FIXED_LENGTH = "an indices-map codec spends the same bits everywhere; compress without a region of interest"
_WIDEST = 16
"""Largest magnitude of a symbol that may be changed."""


class Region:
    """Chooses symbols that spend fewer bits where the weight is low.

    Where the weight is 1, a symbol is the rounded residual. Elsewhere it is the one of least
    `(residual - symbol)^2 + STRENGTH * (1 - weight) * bits(symbol)` among the rounded residual, its neighbour
    towards zero, and zero. The decoder needs to know nothing of it.

    Args:
        weights: `[h, w]` in [0, 1], one per position of y.
        tables: of y.
    """

    def __init__(self, weights: np.ndarray, tables: Sequence[Table]) -> None:
        self._price = STRENGTH * (1 - weights.astype(np.float64))
        self._bits = np.array([_bits(table) for table in tables])

    def choose(self, residual: np.ndarray, indexes: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """Return the symbols of `y / quant_step - means`, int32.

        Args:
            residual: float64 `[B, N, h, w]`.
            indexes: of the tables, of its shape.
            rows: those of the weights that it covers.
        """
        price_of_rows = self._price[rows]
        best = np.rint(residual).clip(-SYMBOL_LIMIT, SYMBOL_LIMIT)
        magnitude = np.abs(best)
        changed = (magnitude > 0) & (magnitude <= _WIDEST) & (price_of_rows > 0)
        price = np.broadcast_to(price_of_rows, best.shape)[changed]
        exact, found = np.abs(residual[changed]), magnitude[changed]
        bits = self._bits[indexes[changed]]

        def cost(symbol: np.ndarray) -> np.ndarray:
            spent = np.take_along_axis(bits, symbol.astype(np.int64)[:, None], 1)[:, 0]
            return np.asarray(np.square(exact - symbol) + price * spent)

        for candidate in (found - 1, np.zeros_like(found)):
            found = np.where(cost(candidate) < cost(found), candidate, found)
        best[changed] = np.copysign(found, residual[changed])
        return best.astype(np.int32)


def _bits(table: Table) -> list[float]:
    """Return the bits of the magnitudes 0 to `_WIDEST` under a table."""
    escape = PRECISION - math.log2(table.frequencies[-1])
    known = [PRECISION - math.log2(f) for f in table.frequencies[-table.low : -1][: _WIDEST + 1]]
    beyond = range(len(known), _WIDEST + 1)
    # An escape, then a sign and four bits of the length of the excess, and the excess.
    return known + [escape + 5 + math.log2(k + 1 - len(known)) for k in beyond]
