"""The coding of z under tables per rate point: lengths by hand, the choice of model, malformed tables."""

from typing import Any

import numpy as np
import pytest

import glc
from glc.codec.entropy.ans import AnsDecoder
from glc.codec.entropy.symbols import SymbolCoder
from glc.codec.entropy.tables import TOTAL, Table, Tables, gaussian_tables
from tests.codec import reference_decoder as reference
from tests.codec.fixed_model import fixed_image
from tests.codec.reference_weights import Weights
from tests.codec.variants import Variants

HALVES = Table(0, (TOTAL // 8, TOTAL // 8, TOTAL // 4, TOTAL // 2))
"""Costs 3, 3, 2 and 1 bits."""
LAST_FIRST = Table(0, (TOTAL // 2, TOTAL // 4, TOTAL // 8, TOTAL // 8))
SIZE = (32, 32)
"""64 positions of z."""


def coder(*tables: Table, num_rates: int | None = None, codes: int = 4) -> SymbolCoder:
    made = gaussian_tables(z_rates=tables)
    return SymbolCoder(made, 4, 4, None, codes, len(tables) if num_rates is None else num_rates)


def written(code: SymbolCoder, z: np.ndarray, rate: float) -> bytes:
    """Return the payload of z alone: no element of y is coded."""
    nothing = np.zeros((1, 4, *SIZE), np.int32)
    masks = np.zeros((4, 4, *SIZE), bool)
    (payload,) = code.write(z[None], nothing, nothing, masks, [rate])
    return payload


@pytest.mark.parametrize(
    ("value", "bits", "fixed"),
    [
        # The first symbol leaves its c in the state (24 bits), each further one its cost, the choice one bit.
        (3, 24 + 63 * 1 + 1, False),
        (2, 23 + 63 * 2 + 1, False),  # under the table c = 2^22; fixed length would need one bit more
        (1, 23 + 63 * 2 + 1, True),  # fixed length: c = 2^22, 2 bits instead of 3
    ],
)
def test_the_shorter_of_table_and_fixed_length_is_written(value: int, bits: int, fixed: bool) -> None:
    code, z = coder(HALVES), np.full((8, 8), value)
    payload = written(code, z, 0.0)
    assert len(payload) == -(-bits // 8)
    assert reference.Stack(payload).uniform(2) == fixed
    stack = AnsDecoder(payload)
    np.testing.assert_array_equal(code.pop_z([stack], SIZE, [0.0])[0], z)
    stack.finish()


def test_of_equal_lengths_the_table_is_written() -> None:
    equal = Table(0, (TOTAL // 4,) * 4)
    payload = written(coder(equal), np.arange(64).reshape(8, 8) % 4, 0.0)
    assert reference.Stack(payload).uniform(2) == 0


@pytest.mark.parametrize(
    ("rate", "table"), [(0.0, 0), (2047 / 4096, 0), (0.5, 1), (1.0, 1), (6143 / 4096, 1), (1.5, 2), (2.0, 2)]
)
def test_a_rate_between_points_uses_the_nearest_table(rate: float, table: int) -> None:
    tables = [HALVES] * 3
    tables[table] = LAST_FIRST
    z = np.zeros((8, 8), np.int64)
    z[-1, -1] = 1  # is encoded first: zeros alone leave the state at 0
    code = coder(*tables)
    payload = written(code, z, rate)
    assert len(payload) == len(written(coder(LAST_FIRST), z, 0.0)) < len(written(coder(HALVES), z, 0.0))
    np.testing.assert_array_equal(code.pop_z([AnsDecoder(payload)], SIZE, [rate])[0], z)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: coder(HALVES, HALVES, num_rates=3), "one table for each of 3 rate points, not 2"),
        (lambda: coder(HALVES, codes=5), "indices 0 to 4"),
        (lambda: coder(Table(1, HALVES.frequencies)), "indices 0 to 3"),
        (lambda: SymbolCoder(gaussian_tables([HALVES, HALVES]), 4, 4, None, 4), "indices 0 to 3"),
        (lambda: SymbolCoder(gaussian_tables(z_rates=[HALVES]), 4, 4, 4), "one table for each of 4 channels"),
        (lambda: gaussian_tables([HALVES], [HALVES]), "z.* or per rate point"),
        (lambda: Tables.from_json({**gaussian_tables().to_json(), "z_rates": [[0, 1, 2]]}), "sum to"),
        (lambda: Tables.from_json({**gaussian_tables().to_json(), "z_rates": 3}), "list of integers"),
        (lambda: Tables.from_json({**gaussian_tables().to_json(), "z_rate": []}), "may have z_rates"),
    ],
)
def test_tables_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_files_of_both_models_hold_the_same_integers(variants: Variants) -> None:
    """A file of the longer model is valid too; encoders write the shorter."""
    codec, weights = variants.codec("z_rates"), Weights.read(variants.weights("z_rates"))
    chosen = set()
    for quality in (0, 41.7):
        data = codec.compress(fixed_image(67, 130), quality)
        stack = reference.Stack(reference.parse(data).payload)
        chosen.add(stack.uniform(2))
        np.testing.assert_array_equal(codec.symbols(data).z[0].numpy(), reference.decode(data, weights).z)
    assert chosen == {0, 1}


def test_both_backends_write_the_same_bytes(variants: Variants) -> None:
    codec = variants.codec("z_rates")
    other = glc.load(variants.weights("z_rates"), backend="onnx")
    data = codec.compress(fixed_image(96, 64), 41.7)
    symbols, rate_index = codec.symbols(data), codec.rate_index(41.7)
    assert other.symbols(data) == symbols
    assert other.from_symbols(other.symbols(data), (96, 64), rate_index) == data
