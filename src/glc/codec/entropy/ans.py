"""Entropy coding of integer symbols under integer tables.

The coder is constriction's asymmetric numeral system: exact integers, measured within 0.11 % of the entropy,
with the same bytes over versions and systems. It is a stack: what is decoded first is encoded last, so
encoders take their runs of symbols in the reverse of the decoder's order.

A symbol outside its table is coded as the table's escape. The escaped symbols of a run follow it: for each
its sign and the number of bits of its excess over the table's end, then, for those of more than one bit, the
excess without its leading bit.
"""

from collections.abc import Sequence

import constriction
import numpy as np

from glc.codec.entropy.tables import PRECISION, SYMBOL_LIMIT, Table
from glc.errors import DamagedError

_LENGTHS = 16
"""Number of bits that an excess may have, at most; 2^16 - 1 spans from one limit to the other."""

_Stack = constriction.stream.stack.AnsCoder
_Model = constriction.stream.model


class AnsEncoder:
    """A stack of runs of symbols; the decoder takes them off in reverse."""

    def __init__(self) -> None:
        self.coder = _Stack()

    def push_bits(self, values: np.ndarray, bits: int) -> None:
        """Encode whole numbers of `bits` bits each, all equally likely."""
        if bits and len(values):
            for shift, width in _slices(bits):
                part = (values >> shift) & ((1 << width) - 1)
                self.coder.encode_reverse(part.astype(np.int32), _Model.Uniform(1 << width))

    def payload(self) -> bytes:
        """Return all that was encoded; the bytes do not end in a zero."""
        return self.coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class AnsDecoder:
    """Takes runs of symbols off what `AnsEncoder.payload` returned."""

    def __init__(self, payload: bytes) -> None:
        padded = payload + bytes(-len(payload) % 4)
        try:
            self.coder = _Stack(np.frombuffer(padded, "<u4").astype(np.uint32))
        except ValueError as error:
            raise DamagedError("damaged: the payload ends in zeros, which no encoder writes") from error

    def pop_bits(self, count: int, bits: int) -> np.ndarray:
        """Decode `count` whole numbers of `bits` bits each."""
        values = np.zeros(count, np.int64)
        if bits and count:
            for shift, width in reversed(_slices(bits)):
                values |= self.coder.decode(_Model.Uniform(1 << width), count).astype(np.int64) << shift
        return values

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            DamagedError: when something is: the payload was not made by an encoder.
        """
        if not self.coder.is_empty():
            raise DamagedError("damaged: the payload holds more than the image")


def _slices(bits: int) -> list[tuple[int, int]]:
    """Return shift and width of the pieces, of less than `PRECISION` bits, that are coded one by one."""
    return [(shift, min(12, bits - shift)) for shift in range(0, bits, 12)]


class UniformModel:
    """Numbers in `[0, size)`, all equally likely: the paper's fixed-length code.

    Args:
        size: 1 to 2^20.
    """

    def __init__(self, size: int) -> None:
        if not 1 <= size <= 1 << 20:
            raise ValueError(f"a code of fixed length has 1 to {1 << 20} values, not {size}")
        self.model = _Model.Uniform(size) if size > 1 else None

    def push(self, stack: AnsEncoder, symbols: np.ndarray) -> None:
        """Encode a run of numbers."""
        if self.model is not None:
            stack.coder.encode_reverse(symbols.astype(np.int32), self.model)

    def pop(self, stack: AnsDecoder, count: int) -> np.ndarray:
        """Decode a run of numbers, int32."""
        if self.model is None:
            return np.zeros(count, np.int32)
        return stack.coder.decode(self.model, count)


class IndexModel:
    """Numbers in `[0, size)` under a table of all of them; nothing is escaped."""

    def __init__(self, table: Table) -> None:
        self.model = _categorical(table)

    def push(self, stack: AnsEncoder, symbols: np.ndarray) -> None:
        """Encode a run of numbers."""
        stack.coder.encode_reverse(symbols.astype(np.int32), self.model)

    def pop(self, stack: AnsDecoder, count: int) -> np.ndarray:
        """Decode a run of numbers, int32."""
        return stack.coder.decode(self.model, count)


class IntegerModel:
    """Integers of a magnitude up to `SYMBOL_LIMIT`, each under one of several tables.

    Args:
        tables: the tables; an element's class chooses one.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self.models = [_categorical(table) for table in tables]
        self.low = np.array([table.low for table in tables], np.int32)
        self.high = np.array([table.high for table in tables], np.int32)

    def push(self, stack: AnsEncoder, symbols: np.ndarray, classes: np.ndarray) -> None:
        """Encode a run of symbols of the given classes, both 1-D."""
        order, ends = self._group(classes)
        symbols = symbols[order].astype(np.int64)
        low, high = self.low[classes[order]], self.high[classes[order]]
        escaped = (symbols < low) | (symbols > high)
        self._push_excesses(stack, symbols[escaped], low[escaped], high[escaped])
        positions = np.where(escaped, high + 1 - low, symbols - low).astype(np.int32)
        for k in reversed(range(len(self.models))):
            if ends[k] < ends[k + 1]:
                stack.coder.encode_reverse(positions[ends[k] : ends[k + 1]], self.models[k])

    def pop(self, stack: AnsDecoder, classes: np.ndarray) -> np.ndarray:
        """Decode a run of symbols of the given classes, int32.

        Raises:
            DamagedError: when a symbol lies outside of what an encoder writes.
        """
        order, ends = self._group(classes)
        positions = np.empty(len(classes), np.int32)
        for k, model in enumerate(self.models):
            if ends[k] < ends[k + 1]:
                positions[ends[k] : ends[k + 1]] = stack.coder.decode(model, int(ends[k + 1] - ends[k]))
        low, high = self.low[classes[order]], self.high[classes[order]]
        values = positions + low
        escaped = values > high
        if escaped.any():
            values[escaped] = self._pop_excesses(stack, low[escaped], high[escaped])
        symbols = np.empty_like(values)
        symbols[order] = values
        return symbols

    def _group(self, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the order that sorts elements by class, and where each class begins and ends in it."""
        order = np.argsort(classes, kind="stable")
        return order, np.searchsorted(classes[order], np.arange(len(self.models) + 1))

    @staticmethod
    def _push_excesses(stack: AnsEncoder, symbols: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        below = symbols < low
        excess = np.where(below, low - symbols, symbols - high)
        lengths = np.frexp(excess.astype(np.float64))[1]
        for length in reversed(range(2, _LENGTHS + 1)):
            rest = excess[lengths == length] - (1 << (length - 1))
            stack.push_bits(rest, length - 1)
        stack.push_bits(lengths.astype(np.int64) - 1, 4)
        stack.push_bits(below.astype(np.int64), 1)

    @staticmethod
    def _pop_excesses(stack: AnsDecoder, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        below = stack.pop_bits(len(low), 1).astype(bool)
        lengths = stack.pop_bits(len(low), 4) + 1
        excess = np.left_shift(np.int64(1), lengths - 1)
        for length in range(2, _LENGTHS + 1):
            chosen = lengths == length
            excess[chosen] += stack.pop_bits(int(chosen.sum()), length - 1)
        symbols = np.where(below, low - excess, high + excess)
        if np.abs(symbols).max() > SYMBOL_LIMIT:
            raise DamagedError("damaged: a symbol lies beyond the limit")
        return symbols.astype(np.int32)


def _categorical(table: Table) -> object:
    # Handed whole numbers whose sum is 2^24 less their count, constriction's rounding gives each of them one
    # more than its own value: the table itself, in integers, whatever the processor does with floats.
    frequencies = np.array(table.frequencies, np.float64)
    assert frequencies.sum() == 1 << PRECISION
    return _Model.Categorical(frequencies - 1, perfect=False)
