"""The ANS coder, against the second decoder's."""

import math
from collections import Counter
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
from tests.codec import reference_decoder as reference
from tests.codec import reference_weights
from tests.codec.entropy.code_length import code_length

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


def theirs(tables: Sequence[Table]) -> list[reference_weights.Table]:
    """Return tables for the second decoder."""
    return [reference_weights.Table(table.low, list(table.frequencies)) for table in tables]


def spread(table: Table, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sample symbols of a table in any order: likely ones, each of its ends, and escapes near and far."""
    symbols = table.low + rng.choice(len(table.frequencies) - 1, count)
    edges = [table.low, table.high, table.low - 1, table.high + 1, table.low - 2, table.high + 9]
    symbols = np.concatenate((symbols, edges, [-SYMBOL_LIMIT, SYMBOL_LIMIT]))
    return rng.permutation(symbols.clip(-SYMBOL_LIMIT, SYMBOL_LIMIT)).astype(np.int32)


def random_table(rng: np.random.Generator) -> Table:
    weights = rng.random(int(rng.integers(2, 400))) ** rng.choice([0, 1, 8, 30])
    return Table(int(rng.integers(-500, 500)), quantize_probabilities(weights + 1e-300))


@pytest.mark.parametrize("kind", ["gaussian", "odd", "random"])
def test_second_decoder_reads_every_table(kind: str) -> None:
    rng = np.random.default_rng(0)
    tables = {"gaussian": GAUSSIANS, "odd": ODD, "random": [random_table(rng) for _ in range(60)]}[kind]
    model, their_tables = IntegerModel(tables), theirs(tables)
    for k, table in enumerate(tables):
        symbols = spread(table, 40, rng)
        indexes, encoder = np.full(len(symbols), k), AnsEncoder()
        model.push(encoder, symbols, indexes)
        stack = reference.Stack(encoder.payload())
        assert reference.decode_integers(stack, indexes, their_tables).tolist() == symbols.tolist()
        stack.finish()


def test_second_decoder_reads_runs_in_reverse_order_of_encoding() -> None:
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
    stack = reference.Stack(encoder.payload())
    assert reference.decode_indices(stack, z.shape, 1000, []).tolist() == z.tolist()
    for symbols, indexes in runs:
        assert reference.decode_integers(stack, indexes, theirs(GAUSSIANS)).tolist() == symbols.tolist()
    stack.finish()


@pytest.mark.parametrize("size", [2, 3, 5, 64, 1000, 1024, 4097, 16384, (1 << 20) - 1, 1 << 20])
def test_fixed_length_codes_round_trip(size: int) -> None:
    rng = np.random.default_rng(size)
    symbols = np.concatenate((rng.integers(0, size, 40), [0, size - 1])).astype(np.int32)
    model, encoder = UniformModel(size), AnsEncoder()
    model.push(encoder, symbols)
    payload = encoder.payload()
    assert len(payload) <= math.ceil(len(symbols) * math.log2(size) / 8) + 4
    decoder, stack = AnsDecoder(payload), reference.Stack(payload)
    assert model.pop(decoder, len(symbols)).tolist() == symbols.tolist()
    assert reference.decode_indices(stack, symbols.shape, size, []).tolist() == symbols.tolist()
    decoder.finish()
    stack.finish()


def test_one_value_takes_no_bytes() -> None:
    model, encoder = UniformModel(1), AnsEncoder()
    model.push(encoder, np.zeros(9, np.int32))
    assert encoder.payload() == b""
    assert model.pop(AnsDecoder(b""), 9).tolist() == [0] * 9


@pytest.mark.parametrize("size", [0, -1, (1 << 20) + 1])
def test_fixed_length_code_sizes_are_checked(size: int) -> None:
    with pytest.raises(ValueError, match=f"not {size}"):
        UniformModel(size)


def test_second_decoder_reads_a_table_of_indices() -> None:
    rng = np.random.default_rng(3)
    table = index_table(torch.from_numpy(np.floor(rng.pareto(0.5, 16384)).clip(0, 1e6)))
    symbols = np.concatenate((rng.integers(0, 16384, 60), [0, 16383])).astype(np.int32)
    encoder = AnsEncoder()
    IndexModel(table).push(encoder, symbols)
    stack = reference.Stack(encoder.payload())
    assert reference.decode_indices(stack, symbols.shape, 16384, theirs([table])).tolist() == symbols.tolist()
    stack.finish()


ALL_TABLES = (*GAUSSIANS[::16], *ODD)
THEIR_TABLES = theirs(ALL_TABLES)
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
    arrays = [np.array(run, np.int64).reshape(-1, 2).T for run in runs]
    for symbols, indexes in reversed(arrays):
        model.push(encoder, symbols.astype(np.int32), indexes)
    payload = encoder.payload()
    assert not payload.endswith(b"\0")
    decoder, stack = AnsDecoder(payload), reference.Stack(payload)
    for symbols, indexes in arrays:
        found = model.pop(decoder, indexes)
        assert found.dtype == np.int32
        assert found.tolist() == symbols.tolist()
        assert reference.decode_integers(stack, indexes, THEIR_TABLES).tolist() == symbols.tolist()
    decoder.finish()


def test_raw_bits_round_trip_without_overhead() -> None:
    rng = np.random.default_rng(5)
    encoder = AnsEncoder()
    runs = [(width, rng.integers(0, 1 << width, 30)) for width in (1, 4, 12, 13, 15, 20)]
    for width, values in reversed(runs):
        encoder.push_bits(values, width)
    payload = encoder.payload()
    assert 30 * 65 / 8 <= len(payload) + 1 <= 30 * 65 / 8 + 6
    decoder = AnsDecoder(payload)
    for width, values in runs:
        assert decoder.pop_bits(30, width).tolist() == values.tolist()
    assert decoder.pop_bits(3, 0).tolist() == [0, 0, 0]
    decoder.finish()


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("count", [0, 1, 10, 20_000])
def test_size_is_within_0_05_percent_of_the_ideal(count: int, factor: float) -> None:
    rng = np.random.default_rng(count)
    indexes = rng.integers(0, len(GAUSSIANS), count)
    scales = 0.11 * 1.0514 ** indexes.astype(float) * factor
    symbols = np.rint(rng.normal(size=count) * scales).astype(np.int32)
    encoder = AnsEncoder()
    IntegerModel(GAUSSIANS).push(encoder, symbols, indexes)
    ideal = (
        sum(code_length(GAUSSIANS[k], symbol) for k, symbol in zip(indexes, symbols.tolist(), strict=True))
        / 8
    )
    assert ideal - 1 <= len(encoder.payload()) <= ideal * 1.0005 + 5


def test_almost_certain_symbols_take_almost_no_bytes() -> None:
    encoder, count = AnsEncoder(), 100_000
    IntegerModel([ODD[0]]).push(encoder, np.zeros(count, np.int32), np.zeros(count, np.int64))
    assert len(encoder.payload()) <= 4


def test_random_bytes_decode_alike_in_both_decoders() -> None:
    rng = np.random.default_rng(7)
    model, outcomes = IntegerModel(ALL_TABLES), Counter[str]()
    for _ in range(3000):
        payload = rng.bytes(int(rng.integers(0, 60))).rstrip(b"\0")
        indexes = rng.integers(0, len(ALL_TABLES), int(rng.integers(0, 12)))
        try:
            expected = reference.decode_integers(reference.Stack(payload), indexes, THEIR_TABLES)
        except reference.Refused:
            outcomes["refused"] += 1
            with pytest.raises(CorruptFileError, match="exceeds 32767"):
                model.pop(AnsDecoder(payload), indexes)
        else:
            outcomes["decoded"] += 1
            assert model.pop(AnsDecoder(payload), indexes).tolist() == expected.tolist()
    assert min(outcomes["refused"], outcomes["decoded"]) > 100


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
