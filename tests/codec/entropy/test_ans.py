"""The ANS coder, against an independent integer decoder written out here."""

import bisect
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glc.codec.entropy.ans import (
    SYMBOL_LIMIT,
    AnsDecoder,
    AnsEncoder,
    IndexModel,
    IntegerModel,
    UniformModel,
)
from glc.codec.entropy.tables import TOTAL, Table, gaussian_tables, index_table, quantize_probabilities
from glc.errors import CorruptFileError

GAUSSIANS = gaussian_tables().y
ODD = (
    Table(0, (TOTAL - 1, 1)),
    Table(3, (1, TOTAL - 1)),
    Table(-40, (1,) * 50 + (TOTAL - 50,)),
    Table(7, (5, 1, TOTAL - 7, 1)),
    Table(-2, (TOTAL // 4,) * 4),
    Table(-32767, (TOTAL // 2, 1, TOTAL // 2 - 1)),
    Table(32766, (TOTAL // 2, 1, TOTAL // 2 - 1)),
)


class Reader:
    """ANS decoder in Python integers: 64-bit state, 32-bit words, 24-bit precision."""

    def __init__(self, payload: bytes) -> None:
        payload += bytes(-len(payload) % 4)
        self.words = [int.from_bytes(payload[i : i + 4], "little") for i in range(0, len(payload), 4)]
        self.state = 0
        while self.words and self.state < 1 << 32:
            self.state = self.state << 32 | self.words.pop()

    def read(self, frequencies: Sequence[int]) -> int:
        """Return the position of the next symbol in a table of frequencies."""
        return self.read_cumulative(list(itertools.accumulate(frequencies)))

    def read_cumulative(self, ends: Sequence[int]) -> int:
        """Return the position of the next symbol in a table of the sums of frequencies so far."""
        position = bisect.bisect_right(ends, self.state % TOTAL)
        self._take(ends[position - 1] if position else 0, ends[position])
        return position

    def read_uniform(self, size: int) -> int:
        """Return the next of `size` equally likely numbers; the last takes the remainder."""
        each = TOTAL // size
        number = min(self.state % TOTAL // each, size - 1)
        self._take(number * each, (number + 1) * each if number < size - 1 else TOTAL)
        return number

    def _take(self, start: int, end: int) -> None:
        self.state = (self.state >> 24) * (end - start) + self.state % TOTAL - start
        if self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()

    def read_bits(self, bits: int) -> int:
        """Return the next number of at most 12 bits."""
        return self.read_uniform(1 << bits)

    def read_integers(self, tables: Sequence[Table], indexes: Sequence[int]) -> list[int]:
        """Return a run of symbols: table by table, then the escaped excesses."""
        symbols = [0] * len(indexes)
        escaped = []
        for k, table in enumerate(tables):
            ends = list(itertools.accumulate(table.frequencies))
            for i in (i for i, chosen in enumerate(indexes) if chosen == k):
                position = self.read_cumulative(ends)
                symbols[i] = table.low + position
                if position == len(ends) - 1:
                    escaped.append((i, table))
        below = [self.read_bits(1) for _ in escaped]
        lengths = [self.read_bits(4) + 1 for _ in escaped]
        excess = [1 << (length - 1) for length in lengths]
        for length in range(2, 17):
            chosen = [j for j, found in enumerate(lengths) if found == length]
            rest = length - 1
            if rest > 12:  # the upper bits of all come before the lower ones of all
                for j in chosen:
                    excess[j] += self.read_bits(rest - 12) << 12
            for j in chosen:
                excess[j] += self.read_bits(min(rest, 12))
        for (i, table), sign, more in zip(escaped, below, excess, strict=True):
            symbols[i] = table.low - more if sign else table.high + more
        return symbols

    @property
    def empty(self) -> bool:
        return not self.words and self.state == 0


def spread(table: Table, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sample symbols of a table: likely ones, each of its ends, and escapes near and far."""
    positions = rng.choice(len(table.frequencies) - 1, count)
    symbols = table.low + positions
    edges = [table.low, table.high, table.low - 1, table.high + 1, table.low - 2, table.high + 9]
    return np.concatenate((symbols, edges, [-SYMBOL_LIMIT, SYMBOL_LIMIT])).clip(-SYMBOL_LIMIT, SYMBOL_LIMIT)


@pytest.mark.parametrize("tables", [GAUSSIANS, ODD], ids=["gaussian", "odd"])
def test_independent_decoder_reads_every_table(tables: Sequence[Table]) -> None:
    rng = np.random.default_rng(0)
    model = IntegerModel(tables)
    for k, table in enumerate(tables):
        symbols = rng.permutation(spread(table, 40, rng)).astype(np.int32)
        indexes = np.full(len(symbols), k)
        encoder = AnsEncoder()
        model.push(encoder, symbols, indexes)
        reader = Reader(encoder.payload())
        assert reader.read_integers(tables, indexes.tolist()) == symbols.tolist()
        assert reader.empty


def test_independent_decoder_reads_random_tables() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        size = int(rng.integers(2, 400))
        weights = rng.random(size) ** rng.choice([0, 1, 8, 30])
        table = Table(int(rng.integers(-500, 500)), quantize_probabilities(weights + 1e-300))
        symbols = spread(table, 60, rng).astype(np.int32)
        encoder, model, indexes = AnsEncoder(), IntegerModel([table]), np.zeros(len(symbols), np.int64)
        model.push(encoder, symbols, indexes)
        assert Reader(encoder.payload()).read_integers([table], indexes.tolist()) == symbols.tolist()


def test_independent_decoder_reads_runs_in_reverse_order_of_encoding() -> None:
    rng = np.random.default_rng(2)
    model, indices = IntegerModel(GAUSSIANS), UniformModel(1000)
    runs = []
    for count in (300, 1, 0, 500):
        indexes = rng.integers(0, len(GAUSSIANS), count)
        scales = 0.11 * 1.0514 ** indexes.astype(float)
        runs.append((np.rint(rng.standard_t(2, count) * scales * 2).astype(np.int32), indexes))
    z = rng.integers(0, 1000, 77).astype(np.int32)
    encoder = AnsEncoder()
    for symbols, indexes in reversed(runs):
        model.push(encoder, symbols, indexes)
    indices.push(encoder, z)
    reader = Reader(encoder.payload())
    assert [reader.read_uniform(1000) for _ in z] == z.tolist()
    for symbols, indexes in runs:
        assert reader.read_integers(GAUSSIANS, indexes.tolist()) == symbols.tolist()
    assert reader.empty


@pytest.mark.parametrize("size", [2, 3, 5, 64, 1000, 1024, 4097, 16384, (1 << 20) - 1, 1 << 20])
def test_fixed_length_codes_round_trip(size: int) -> None:
    rng = np.random.default_rng(size)
    symbols = np.concatenate((rng.integers(0, size, 40), [0, size - 1])).astype(np.int32)
    model, encoder = UniformModel(size), AnsEncoder()
    model.push(encoder, symbols)
    payload = encoder.payload()
    assert len(payload) <= math.ceil(len(symbols) * math.log2(size) / 8) + 4
    decoder = AnsDecoder(payload)
    assert model.pop(decoder, len(symbols)).tolist() == symbols.tolist()
    decoder.finish()
    reader = Reader(payload)
    assert [reader.read_uniform(size) for _ in symbols] == symbols.tolist()
    assert reader.empty


def test_one_value_takes_no_bytes() -> None:
    model, encoder = UniformModel(1), AnsEncoder()
    model.push(encoder, np.zeros(9, np.int32))
    assert encoder.payload() == b""
    assert model.pop(AnsDecoder(b""), 9).tolist() == [0] * 9


@pytest.mark.parametrize("size", [0, -1, (1 << 20) + 1])
def test_fixed_length_code_sizes_are_checked(size: int) -> None:
    with pytest.raises(ValueError, match=f"not {size}"):
        UniformModel(size)


def test_independent_decoder_reads_a_table_of_indices() -> None:
    rng = np.random.default_rng(3)
    counts = np.floor(rng.pareto(0.5, 16384)).clip(0, 1e6)
    table = index_table(torch.from_numpy(counts))
    symbols = np.concatenate((rng.integers(0, 16384, 60), [0, 16383])).astype(np.int32)
    model, encoder = IndexModel(table), AnsEncoder()
    model.push(encoder, symbols)
    reader = Reader(encoder.payload())
    assert [reader.read(table.frequencies) for _ in symbols] == symbols.tolist()
    assert reader.empty


ALL_TABLES = (*GAUSSIANS[::16], *ODD)
ANY_SYMBOL = st.one_of(
    st.integers(-3, 3),
    st.integers(-300, 300),
    st.integers(-SYMBOL_LIMIT, SYMBOL_LIMIT),
    st.sampled_from([-SYMBOL_LIMIT, SYMBOL_LIMIT]),
)
RUN = st.lists(st.tuples(ANY_SYMBOL, st.integers(0, len(ALL_TABLES) - 1)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(st.lists(RUN, max_size=4))
def test_runs_round_trip(runs: list[list[tuple[int, int]]]) -> None:
    model, encoder = IntegerModel(ALL_TABLES), AnsEncoder()
    for run in reversed(runs):
        model.push(encoder, np.array([s for s, _ in run], np.int32), np.array([k for _, k in run], np.int64))
    payload = encoder.payload()
    assert not payload.endswith(b"\0")
    decoder, reader = AnsDecoder(payload), Reader(payload)
    for run in runs:
        indexes = [k for _, k in run]
        expected = [s for s, _ in run]
        found = model.pop(decoder, np.array(indexes, np.int64))
        assert found.dtype == np.int32
        assert found.tolist() == expected == reader.read_integers(ALL_TABLES, indexes)
    decoder.finish()


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_run_of_escapes_round_trips(count: int) -> None:
    table = GAUSSIANS[0]
    symbols = np.where(np.arange(count) % 2, 1, -1) * (table.high + 1 + np.arange(count) * 31)
    model, encoder, indexes = IntegerModel([table]), AnsEncoder(), np.zeros(count, np.int64)
    model.push(encoder, symbols.astype(np.int32), indexes)
    decoder = AnsDecoder(encoder.payload())
    assert model.pop(decoder, indexes).tolist() == symbols.tolist()
    decoder.finish()


def test_raw_bits_round_trip_without_overhead() -> None:
    rng = np.random.default_rng(5)
    encoder = AnsEncoder()
    runs = [(bits, rng.integers(0, 1 << bits, 30)) for bits in (1, 4, 12, 13, 15, 20)]
    for bits, values in reversed(runs):
        encoder.push_bits(values, bits)
    payload = encoder.payload()
    assert 30 * 65 / 8 <= len(payload) + 1 <= 30 * 65 / 8 + 6
    decoder = AnsDecoder(payload)
    for bits, values in runs:
        assert decoder.pop_bits(30, bits).tolist() == values.tolist()
    assert decoder.pop_bits(3, 0).tolist() == [0, 0, 0]
    decoder.finish()


def ideal_bits(tables: Sequence[Table], symbols: np.ndarray, indexes: np.ndarray) -> float:
    """Return the ideal code length in bits, including escapes."""
    total = 0.0
    for symbol, k in zip(symbols.tolist(), indexes.tolist(), strict=True):
        table = tables[k]
        if table.low <= symbol <= table.high:
            total += 24 - math.log2(table.frequencies[symbol - table.low])
        else:
            excess = table.low - symbol if symbol < table.low else symbol - table.high
            total += 24 - math.log2(table.frequencies[-1]) + 4 + excess.bit_length()
    return total


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("count", [0, 1, 10, 20_000])
def test_size_is_within_0_05_percent_of_the_ideal(count: int, factor: float) -> None:
    rng = np.random.default_rng(count)
    indexes = rng.integers(0, len(GAUSSIANS), count)
    symbols = np.rint(rng.normal(size=count) * 0.11 * 1.0514 ** indexes.astype(float) * factor).astype(
        np.int32
    )
    encoder = AnsEncoder()
    IntegerModel(GAUSSIANS).push(encoder, symbols, indexes)
    ideal = ideal_bits(GAUSSIANS, symbols, indexes) / 8
    assert ideal - 1 <= len(encoder.payload()) <= ideal * 1.0005 + 5


def test_almost_certain_symbols_take_almost_no_bytes() -> None:
    encoder, count = AnsEncoder(), 100_000
    IntegerModel([ODD[0]]).push(encoder, np.zeros(count, np.int32), np.zeros(count, np.int64))
    assert len(encoder.payload()) <= 4


def test_random_bytes_decode_or_are_corrupt() -> None:
    rng = np.random.default_rng(6)
    model = IntegerModel(ALL_TABLES)
    damaged = 0
    for _ in range(10_000):
        payload = rng.bytes(int(rng.integers(0, 40)))
        indexes = rng.integers(0, len(ALL_TABLES), int(rng.integers(0, 12)))
        try:
            decoder = AnsDecoder(payload)
            symbols = model.pop(decoder, indexes)
        except CorruptFileError:
            damaged += 1
            continue
        assert symbols.shape == indexes.shape
        # A table may reach beyond the limit by itself; only what is escaped is checked.
        assert np.abs(symbols).max(initial=0) <= SYMBOL_LIMIT + 1
    assert 0 < damaged < 10_000


def test_random_bytes_decode_alike_in_both_decoders() -> None:
    rng = np.random.default_rng(7)
    model = IntegerModel(ALL_TABLES)
    for _ in range(300):
        payload = rng.bytes(int(rng.integers(1, 60))).rstrip(b"\0")
        indexes = rng.integers(0, len(ALL_TABLES), 10)
        expected = Reader(payload).read_integers(ALL_TABLES, indexes.tolist())
        if max(map(abs, expected)) > SYMBOL_LIMIT:
            with pytest.raises(CorruptFileError, match="exceeds 32767"):
                model.pop(AnsDecoder(payload), indexes)
        else:
            assert model.pop(AnsDecoder(payload), indexes).tolist() == expected


def test_symbol_beyond_the_limit_is_corrupt() -> None:
    table = GAUSSIANS[0]
    model, encoder = IntegerModel([table]), AnsEncoder()
    model.push(encoder, np.array([SYMBOL_LIMIT + 1]), np.zeros(1, np.int64))
    with pytest.raises(CorruptFileError, match="exceeds 32767"):
        model.pop(AnsDecoder(encoder.payload()), np.zeros(1, np.int64))


def test_undecoded_data_is_corrupt() -> None:
    model, encoder = UniformModel(64), AnsEncoder()
    model.push(encoder, np.arange(60, dtype=np.int32))
    decoder = AnsDecoder(encoder.payload())
    model.pop(decoder, 59)
    with pytest.raises(CorruptFileError, match="more than the image"):
        decoder.finish()


@pytest.mark.parametrize("payload", [bytes(4), b"\1\2\3\4" + bytes(4), b"\1" + bytes(11)])
def test_trailing_zero_words_are_corrupt(payload: bytes) -> None:
    with pytest.raises(CorruptFileError, match="ends in zeros"):
        AnsDecoder(payload)


def test_payloads_are_deterministic() -> None:
    indexes = np.arange(100) % len(GAUSSIANS)
    payloads = set()
    for _ in range(3):
        encoder = AnsEncoder()
        IntegerModel(GAUSSIANS).push(encoder, (np.arange(100) % 7 - 3).astype(np.int32), indexes)
        payloads.add(encoder.payload())
    assert len(payloads) == 1
