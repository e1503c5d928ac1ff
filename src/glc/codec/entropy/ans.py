"""Entropy coding of integer symbols under integer frequency tables, by asymmetric numeral systems (ANS).

The coder is constriction's: integer arithmetic, measured within 0.11 % of the entropy, the same bytes for all
versions and systems. ANS is a stack: symbols decoded first are encoded last, so an encoder pushes runs of
symbols in the reverse of the decoder's order.

A symbol outside its table is coded as the table's escape. The escaped symbols of a run follow the run: for
each its sign and the bit length of its excess over the table's end, then, for lengths above one, the excess
without its leading bit.
"""

from collections.abc import Sequence

import constriction
import numpy as np

from glc.codec.entropy.tables import PRECISION, SYMBOL_LIMIT, Table
from glc.errors import CorruptFileError

_MAX_EXCESS_BITS = 16
"""Largest bit length of an excess: 2^16 - 1 spans from one symbol limit to the other."""

_Stack = constriction.stream.stack.AnsCoder
_Model = constriction.stream.model


class AnsEncoder:
    """A stack of runs of symbols; the decoder pops them in reverse."""

    def __init__(self) -> None:
        self.coder = _Stack()

    def push_bits(self, values: np.ndarray, bits: int) -> None:
        """Encode equally likely integers of `bits` bits each."""
        if bits and len(values):
            for shift, width in _slices(bits):
                piece = (values >> shift) & ((1 << width) - 1)
                self.coder.encode_reverse(piece.astype(np.int32), _Model.Uniform(1 << width))

    def copy(self) -> "AnsEncoder":
        """Return a stack with the same content."""
        other = AnsEncoder()
        other.coder = self.coder.clone()
        return other

    def payload(self) -> bytes:
        """Return the encoded bytes; the last one is not zero."""
        return self.coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class AnsDecoder:
    """Pops runs of symbols from a payload of `AnsEncoder`.

    Raises:
        CorruptFileError: if the payload ends in a zero word.
    """

    def __init__(self, payload: bytes) -> None:
        padded = payload + bytes(-len(payload) % 4)
        try:
            self.coder = _Stack(np.frombuffer(padded, "<u4").astype(np.uint32))
        except ValueError as error:
            raise CorruptFileError("corrupt file: the payload ends in zeros") from error

    def pop_bits(self, count: int, bits: int) -> np.ndarray:
        """Decode `count` integers of `bits` bits each, int64."""
        values = np.zeros(count, np.int64)
        if bits and count:
            for shift, width in reversed(_slices(bits)):
                values |= self.coder.decode(_Model.Uniform(1 << width), count).astype(np.int64) << shift
        return values

    def finish(self) -> None:
        """Check that all of the payload was decoded.

        Raises:
            CorruptFileError: if data is left.
        """
        if not self.coder.is_empty():
            raise CorruptFileError("corrupt file: the payload holds more than the image")


def _slices(bits: int) -> list[tuple[int, int]]:
    """Return shift and width of the pieces, of at most 12 bits, that are coded separately."""
    return [(shift, min(12, bits - shift)) for shift in range(0, bits, 12)]


class UniformModel:
    """Equally likely integers in `[0, size)`: the paper's fixed-length code.

    Args:
        size: 1 to 2^20.
    """

    def __init__(self, size: int) -> None:
        if not 1 <= size <= 1 << 20:
            raise ValueError(f"a fixed-length code has 1 to {1 << 20} values, not {size}")
        self.model = _Model.Uniform(size) if size > 1 else None

    def push(self, stack: AnsEncoder, symbols: np.ndarray) -> None:
        """Encode a run of integers."""
        if self.model is not None:
            stack.coder.encode_reverse(symbols.astype(np.int32), self.model)

    def pop(self, stack: AnsDecoder, count: int) -> np.ndarray:
        """Decode a run of integers, int32."""
        if self.model is None:
            return np.zeros(count, np.int32)
        return stack.coder.decode(self.model, count)


class IndexModel:
    """Integers in `[0, size)` under one table without an escape."""

    def __init__(self, table: Table) -> None:
        self.model = _categorical(table)

    def push(self, stack: AnsEncoder, symbols: np.ndarray) -> None:
        """Encode a run of integers."""
        stack.coder.encode_reverse(symbols.astype(np.int32), self.model)

    def pop(self, stack: AnsDecoder, count: int) -> np.ndarray:
        """Decode a run of integers, int32."""
        return stack.coder.decode(self.model, count)


class IntegerModel:
    """Integers of magnitude up to `SYMBOL_LIMIT`, each under one of several tables.

    Args:
        tables: the tables; each symbol comes with the index of its table (scale index of y, channel of z).
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self.models = [_categorical(table) for table in tables]
        self.low = np.array([table.low for table in tables], np.int32)
        self.high = np.array([table.high for table in tables], np.int32)

    def push(self, stack: AnsEncoder, symbols: np.ndarray, indexes: np.ndarray) -> None:
        """Encode a run of symbols with their table indexes, both 1-D."""
        order, ends = self._group(indexes)
        symbols = symbols[order].astype(np.int64)
        low, high = self.low[indexes[order]], self.high[indexes[order]]
        escaped = (symbols < low) | (symbols > high)
        self._push_excesses(stack, symbols[escaped], low[escaped], high[escaped])
        positions = np.where(escaped, high + 1 - low, symbols - low).astype(np.int32)
        for k in reversed(range(len(self.models))):
            if ends[k] < ends[k + 1]:
                stack.coder.encode_reverse(positions[ends[k] : ends[k + 1]], self.models[k])

    def pop(self, stack: AnsDecoder, indexes: np.ndarray) -> np.ndarray:
        """Decode a run of symbols with the given table indexes, int32.

        Raises:
            CorruptFileError: if an escaped symbol exceeds `SYMBOL_LIMIT`.
        """
        order, ends = self._group(indexes)
        positions = np.empty(len(indexes), np.int32)
        for k, model in enumerate(self.models):
            if ends[k] < ends[k + 1]:
                positions[ends[k] : ends[k + 1]] = stack.coder.decode(model, int(ends[k + 1] - ends[k]))
        low, high = self.low[indexes[order]], self.high[indexes[order]]
        values = positions + low
        escaped = values > high
        if escaped.any():
            values[escaped] = self._pop_excesses(stack, low[escaped], high[escaped])
        symbols = np.empty_like(values)
        symbols[order] = values
        return symbols

    def _group(self, indexes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the order that sorts elements by table, and the boundaries of the tables in it."""
        order = np.argsort(indexes, kind="stable")
        return order, np.searchsorted(indexes[order], np.arange(len(self.models) + 1))

    @staticmethod
    def _push_excesses(stack: AnsEncoder, symbols: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        below = symbols < low
        excess = np.where(below, low - symbols, symbols - high)
        lengths = np.frexp(excess.astype(np.float64))[1]
        for length in reversed(range(2, _MAX_EXCESS_BITS + 1)):
            rest = excess[lengths == length] - (1 << (length - 1))
            stack.push_bits(rest, length - 1)
        stack.push_bits(lengths.astype(np.int64) - 1, 4)
        stack.push_bits(below.astype(np.int64), 1)

    @staticmethod
    def _pop_excesses(stack: AnsDecoder, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        below = stack.pop_bits(len(low), 1).astype(bool)
        lengths = stack.pop_bits(len(low), 4) + 1
        excess = np.left_shift(np.int64(1), lengths - 1)
        for length in range(2, _MAX_EXCESS_BITS + 1):
            chosen = lengths == length
            excess[chosen] += stack.pop_bits(int(chosen.sum()), length - 1)
        symbols = np.where(below, low - excess, high + excess)
        if np.abs(symbols).max() > SYMBOL_LIMIT:
            raise CorruptFileError(f"corrupt file: a symbol exceeds {SYMBOL_LIMIT}")
        return symbols.astype(np.int32)


def _categorical(table: Table) -> object:
    # constriction gives each symbol at least 1 and distributes the remaining 2^24 - n in proportion to the
    # given probabilities. Frequencies less 1 sum to exactly that remainder, so its result is the table
    # itself, without rounding: independent of the processor's floating point.
    frequencies = np.array(table.frequencies, np.float64)
    assert frequencies.sum() == 1 << PRECISION
    return _Model.Categorical(frequencies - 1, perfect=False)
