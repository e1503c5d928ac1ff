"""Integer frequency tables: computed once at export and stored with the weights, never recomputed.

The frequencies of a table are integers that sum to 2^24. Symbols of y are coded under one of `SCALES`
zero-mean Gaussians, chosen by the integer scale; a symbol outside its table is coded as the escape (see
`glc.codec.entropy.ans`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glc.errors import TableError

if TYPE_CHECKING:
    from glc.models.entropy import FactorizedDensity

WEIGHT_BITS = 14
"""Weights of the integer networks are multiples of 2^-WEIGHT_BITS."""
ACTIVATION_BITS = 12
"""Their activations are multiples of 2^-ACTIVATION_BITS."""
ACTIVATION_LIMIT = 1 << 14
"""Largest magnitude of an activation."""
PRECISION = 24
"""Frequencies sum to 2^PRECISION."""
TOTAL = 1 << PRECISION
SCALES = 128
SCALE_MIN, SCALE_MAX = 0.11, 64.0
SYMBOL_LIMIT = (1 << 15) - 1
"""Largest magnitude of a symbol."""
_TAIL = 2.0**-16
"""Largest probability beyond a table's ends, which is escaped."""
_MIN_ESCAPE = TOTAL >> 17
"""Minimum frequency of an escape."""


@dataclass(frozen=True)
class Table:
    """Frequencies of consecutive integers and of the escape.

    Args:
        low: the smallest integer.
        frequencies: of `low`, `low + 1` and so on, then of the escape; positive, of sum 2^24.

    Raises:
        TableError: for other frequencies, or a range beyond the symbol limit.
    """

    low: int
    frequencies: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.frequencies) < 2 or min(self.frequencies) < 1 or sum(self.frequencies) != TOTAL:
            raise TableError(f"the frequencies of a table must be positive and sum to {TOTAL}")
        if abs(self.low) > SYMBOL_LIMIT or abs(self.high) > TOTAL:
            raise TableError(f"a table must start within +-{SYMBOL_LIMIT}")

    @property
    def high(self) -> int:
        """The largest integer that is not escaped."""
        return self.low + len(self.frequencies) - 2

    @property
    def escape(self) -> int:
        """Position of the escape."""
        return len(self.frequencies) - 1


def quantize_probabilities(probabilities: np.ndarray, least: int = 1) -> tuple[int, ...]:
    """Round probabilities to frequencies of at least `least` that sum to 2^24.

    The rounding remainder is added to the most likely symbol, where it changes the least.
    """
    scaled = probabilities / probabilities.sum() * TOTAL
    frequencies = np.maximum(np.rint(scaled), least).astype(np.int64)
    frequencies[int(frequencies.argmax())] += TOTAL - int(frequencies.sum())
    return tuple(int(f) for f in frequencies)


def gaussian_table(scale: float) -> Table:
    """Return the table of a zero-mean Gaussian integrated over unit intervals, symmetric about zero."""

    def beyond(x: float) -> float:
        return 0.5 * math.erfc(x / scale * math.sqrt(0.5))

    high = 1
    while 2 * beyond(high + 0.5) > _TAIL:
        high += 1
    upper = [max(1, round((beyond(k - 0.5) - beyond(k + 0.5)) * TOTAL)) for k in range(1, high + 1)]
    escape = max(_MIN_ESCAPE, round(2 * beyond(high + 0.5) * TOTAL))
    centre = TOTAL - 2 * sum(upper) - escape
    return Table(-high, (*upper[::-1], centre, *upper, escape))


def density_tables(density: "FactorizedDensity", widest: int = 256) -> list[Table]:
    """Return one table per channel of a learned density.

    Args:
        widest: largest magnitude of a symbol in the tables.
    """
    import torch

    from glc.models.entropy import LIKELIHOOD_FLOOR

    symbols = torch.arange(-widest, widest + 1, dtype=torch.float32)
    grid = symbols.view(1, 1, -1, 1).expand(1, density.channels, -1, 1)
    with torch.no_grad():
        bits = density(grid)[0, :, :, 0]
        likelihood = torch.exp2(-bits).double().sub_(LIKELIHOOD_FLOOR).clamp_min_(0).numpy()
    tables = []
    for row in likelihood:
        kept = np.flatnonzero(row > _TAIL / 4)
        first, last = (int(kept[0]), int(kept[-1])) if len(kept) else (widest, widest)
        inside = row[first : last + 1]
        frequencies = quantize_probabilities(np.append(inside, max(1 - inside.sum(), _MIN_ESCAPE / TOTAL)))
        tables.append(Table(first - widest, frequencies))
    return tables


@dataclass(frozen=True)
class Tables:
    """All tables of a codec.

    Args:
        thresholds: integer scales in units of 2^-12, ascending: an element's scale index is the number of
            thresholds that are at most its scale.
        y: one table per scale index.
        z: tables of the hyper-latent z: empty for a fixed-length code; one over all indices (its escape is
            the last index); or one per channel of a factorised hyperprior.
        z_rates: instead of `z`, one table over all indices per rate point. Each file then says whether its
            indices are coded under the table or with fixed length.

    Raises:
        TableError: if thresholds and tables do not fit each other.
    """

    thresholds: tuple[int, ...]
    y: tuple[Table, ...]
    z: tuple[Table, ...] = ()
    z_rates: tuple[Table, ...] = ()

    def __post_init__(self) -> None:
        if self.z and self.z_rates:
            raise TableError("tables of z are either for all rate points (z) or per rate point (z_rates)")
        if len(self.thresholds) + 1 != len(self.y) or list(self.thresholds) != sorted(set(self.thresholds)):
            raise TableError("tables of y: thresholds must ascend, one between each two tables")
        if any(not 0 < threshold < TOTAL for threshold in self.thresholds):
            raise TableError(f"thresholds must be positive and below {TOTAL}")

    def to_json(self) -> dict[str, Any]:
        """Return the tables as plain lists; for tables of y, which are symmetric, only the upper halves."""
        stored = {
            "thresholds": list(self.thresholds),
            "y": [list(table.frequencies[-table.low :]) for table in self.y],
            "z": [[table.low, *table.frequencies] for table in self.z],
        }
        if self.z_rates:  # absent in format 1, whose fingerprints must not change
            stored["z_rates"] = [[table.low, *table.frequencies] for table in self.z_rates]
        return stored

    @classmethod
    def from_json(cls, stored: Any) -> "Tables":
        """Undo `to_json`.

        Raises:
            TableError: if the description is not valid.
        """
        if not isinstance(stored, Mapping) or set(stored) - {"z_rates"} != {"thresholds", "y", "z"}:
            raise TableError("tables need the keys thresholds, y and z, and may have z_rates")
        y = []
        for half in _integer_lists(stored["y"]):
            if len(half) < 2:
                raise TableError("a table of y needs the frequencies of zero and of the escape")
            inner = half[1:-1]
            y.append(Table(-len(inner), (*inner[::-1], *half)))
        z, z_rates = (
            tuple(Table(low, tuple(rest)) for low, *rest in _integer_lists(stored.get(key, [])))
            for key in ("z", "z_rates")
        )
        (thresholds,) = _integer_lists([stored["thresholds"]], may_be_empty=True)
        return cls(tuple(thresholds), tuple(y), z, z_rates)


def _integer_lists(stored: Any, may_be_empty: bool = False) -> list[list[int]]:
    def is_row(row: Any) -> bool:
        return (
            isinstance(row, list) and (may_be_empty or bool(row)) and all(type(value) is int for value in row)
        )

    if not isinstance(stored, list) or not all(is_row(row) for row in stored):
        raise TableError("a table must be a list of integers")
    return stored


def gaussian_tables(z: Sequence[Table] = (), z_rates: Sequence[Table] = ()) -> Tables:
    """Return the tables of new weights: `SCALES` Gaussians with log-spaced scales, and those of z."""
    ratio = (SCALE_MAX / SCALE_MIN) ** (1 / (SCALES - 1))
    scales = [SCALE_MIN * ratio**i for i in range(SCALES)]
    between = [scale * math.sqrt(ratio) for scale in scales[:-1]]
    thresholds = tuple(math.ceil(scale * (1 << ACTIVATION_BITS)) for scale in between)
    return Tables(thresholds, tuple(gaussian_table(scale) for scale in scales), tuple(z), tuple(z_rates))


def index_table(counts: Any) -> Table:
    """Return the table of indices with given counts `[M]`, an array or a tensor on the CPU.

    Laplace smoothing (one added to each count) makes every index codable. The last index takes the place of
    the escape.
    """
    return Table(0, quantize_probabilities(np.asarray(counts, np.float64) + 1))
