"""Frequency tables: sums, shapes, code lengths, and validation."""

import bisect
import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glc.codec.entropy.ans import AnsDecoder, AnsEncoder, IndexModel
from glc.codec.entropy.tables import (
    SCALE_MAX,
    SCALE_MIN,
    SCALES,
    SYMBOL_LIMIT,
    TOTAL,
    Table,
    Tables,
    density_tables,
    gaussian_tables,
    index_table,
    quantize_probabilities,
)
from glc.errors import TableError
from glc.models.entropy import FactorizedDensity
from tests.codec.entropy.code_length import code_length

GAUSSIANS = gaussian_tables()
SHIFTED = (Table(-3, (1, 2, 3, TOTAL - 6)), Table(5, (TOTAL - 1, 1)))


def probability(k: int, scale: float) -> float:
    """Return the mass of a Gaussian in the unit interval about k."""
    k = abs(k)
    return 0.5 * (math.erfc((k - 0.5) / scale / 2**0.5) - math.erfc((k + 0.5) / scale / 2**0.5))


def table_of(scale: float) -> Table:
    """Return the table of a scale."""
    return GAUSSIANS.y[bisect.bisect_right(GAUSSIANS.thresholds, math.floor(scale * 4096))]


RATIO = (SCALE_MAX / SCALE_MIN) ** (1 / (SCALES - 1))
"""Of neighbouring scales."""


def test_there_is_one_symmetric_table_per_scale_index_of_sum_2_to_the_24() -> None:
    assert len(GAUSSIANS.y) == SCALES == len(GAUSSIANS.thresholds) + 1
    for table in GAUSSIANS.y:
        assert sum(table.frequencies) == 1 << 24
        assert min(table.frequencies) >= 1
        assert table.high - table.low + 2 == len(table.frequencies) == table.escape + 1
        assert table.low == -table.high
        assert table.frequencies[:-1] == table.frequencies[-2::-1]


def test_gaussian_tables_equal_the_gaussian_probabilities() -> None:
    for i, table in enumerate(GAUSSIANS.y):
        scale = SCALE_MIN * RATIO**i
        for k in range(1, table.high + 1):
            # Half a unit of rounding, or the least frequency.
            assert abs(table.frequencies[k - table.low] - probability(k, scale) * TOTAL) <= 1
        tail, longer_tail = (math.erfc((table.high + d) / scale / 2**0.5) for d in (0.5, -0.5))
        assert tail <= 2**-16
        assert longer_tail > 2**-16 or table.high == 1
        assert max(TOTAL >> 17, math.floor(tail * TOTAL)) <= table.frequencies[-1] <= TOTAL >> 16


def test_scales_use_the_table_nearest_in_the_logarithm() -> None:
    for i, table in enumerate(GAUSSIANS.y):
        scale = SCALE_MIN * RATIO**i
        for nearby in (scale, scale * RATIO**0.45, scale / RATIO**0.45):
            # The smallest scales are a few grid steps apart.
            assert table_of(nearby) is table or abs(nearby - scale * RATIO**0.5) < 2**-11
    assert table_of(0) is table_of(-5) is GAUSSIANS.y[0]
    assert table_of(16000) is GAUSSIANS.y[-1]


def test_code_length_is_near_the_entropy_of_each_scale() -> None:
    # A Gaussian coded as one whose scale differs by a factor of e^d costs d^2 nats more at first order, and a
    # grouping of its values no more than that; d is at most half the spacing of the scales.
    step = math.log(SCALE_MAX / SCALE_MIN) / (SCALES - 1) / 2
    mismatch = step**2 * (1 + 2 * step) / math.log(2)
    # Escapes: a reserve of 2^-17 / ln 2 bits per symbol, and a tail of 2^-16 that costs up to 5 bits over.
    escapes = 2**-17 / math.log(2) + 5 * 2**-16
    for scale in np.geomspace(0.2, 32, 200):
        table = table_of(scale)
        entropy = cost = 0.0
        for k in range(-math.ceil(9 * scale), math.ceil(9 * scale) + 1):
            p = probability(k, scale)
            if p > 0:
                entropy -= p * math.log2(p)
                cost += p * code_length(table, k)
        assert 0 <= cost - entropy <= mismatch + escapes
        assert cost <= 1.003 * entropy


@given(st.lists(st.floats(1e-12, 1), min_size=2, max_size=300))
def test_quantized_probabilities_are_close_and_sum_to_the_total(weights: list[float]) -> None:
    probabilities = np.array(weights) / sum(weights)
    frequencies = quantize_probabilities(probabilities)
    assert sum(frequencies) == TOTAL
    assert min(frequencies) >= 1
    off = np.abs(np.array(frequencies) - probabilities * TOTAL)
    # All but the one that takes the remainder are rounded, or raised to the minimum.
    assert np.sort(off)[-2] <= 1
    assert off.max() <= len(weights)


@pytest.mark.parametrize("z", [(), SHIFTED])
def test_tables_round_trip_through_json(z: tuple[Table, ...]) -> None:
    tables = gaussian_tables(z)
    stored = json.loads(json.dumps(tables.to_json()))
    assert Tables.from_json(stored) == tables
    assert Tables.from_json(stored).to_json() == stored


@pytest.mark.parametrize("frequencies", [(), (TOTAL,), (TOTAL, 0), (TOTAL + 1, -1), (1, 1), (TOTAL, 1)])
def test_frequencies_must_be_positive_and_sum_to_the_total(frequencies: tuple[int, ...]) -> None:
    with pytest.raises(TableError):
        Table(0, frequencies)


@pytest.mark.parametrize("low", [SYMBOL_LIMIT + 1, -SYMBOL_LIMIT - 1, 2**31, -(2**40)])
def test_table_must_start_within_the_symbol_limit(low: int) -> None:
    with pytest.raises(TableError):
        Table(low, (1, TOTAL - 1))


@pytest.mark.parametrize("thresholds", [(0, 5), (-3, 5), (5, TOTAL), (5, 10**30)])
def test_thresholds_out_of_range_are_refused(thresholds: tuple[int, ...]) -> None:
    with pytest.raises(TableError):
        Tables(thresholds, GAUSSIANS.y[:3])


def at(*path: Any, to: Any) -> Callable[[Any], None]:
    """Return an edit that sets a value of stored tables, or applies a function to it."""

    def edit(stored: Any) -> None:
        for key in path[:-1]:
            stored = stored[key]
        stored[path[-1]] = to(stored[path[-1]]) if callable(to) else to

    return edit


EDITS: dict[str, Callable[[Any], Any]] = {
    "no thresholds": lambda s: s.pop("thresholds"),
    "no y": lambda s: s.pop("y"),
    "no z": lambda s: s.pop("z"),
    "another key": lambda s: s.update(more=[]),
    "thresholds null": at("thresholds", to=None),
    "thresholds nested": at("thresholds", to=lambda t: [t]),
    "thresholds text": at("thresholds", to="0123"),
    "thresholds of floats": at("thresholds", to=lambda t: [float(x) for x in t]),
    "one threshold less": at("thresholds", to=lambda t: t[1:]),
    "one threshold more": at("thresholds", to=lambda t: [*t, t[-1] + 1]),
    "thresholds falling": at("thresholds", to=lambda t: t[::-1]),
    "two equal thresholds": at("thresholds", to=lambda t: [t[1], *t[1:]]),
    "y null": at("y", to=None),
    "y empty": at("y", to=lambda _: []),
    "y a number": at("y", to=7),
    "y flat": at("y", to=lambda y: y[0]),
    "one table less": at("y", to=lambda y: y[1:]),
    "one table more": at("y", to=lambda y: [*y, y[0]]),
    "an empty table": at("y", 5, to=lambda _: []),
    "a table of one": at("y", 5, to=lambda _: [TOTAL]),
    "a table of text": at("y", 5, to="12"),
    "a table as a mapping": at("y", 5, to=lambda _: {"0": TOTAL}),
    "a frequency more": at("y", 5, 0, to=lambda f: f + 1),
    "a frequency less": at("y", 5, -1, to=lambda f: f - 1),
    "a frequency as a float": at("y", 5, 0, to=float),
    "a frequency as text": at("y", 5, 0, to=str),
    "a frequency as a truth": at("y", 0, 1, to=True),
    "a frequency null": at("y", 5, 0, to=None),
    "a frequency of NaN": at("y", 5, 0, to=math.nan),
    "a zero": lambda s: s["y"][5].insert(-1, 0),
    "z null": at("z", to=None),
    "z flat": at("z", to=lambda z: z[0]),
    "z of floats": at("z", 0, 0, to=-3.0),
    "an empty z": at("z", 0, to=lambda _: []),
    "z with its low alone": at("z", 0, to=lambda _: [0]),
    "z with its escape alone": at("z", 0, to=lambda _: [0, TOTAL]),
    "z without its low": at("z", 0, to=lambda z: z[1:]),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_malformed_tables_are_refused(edit: Callable[[Any], Any]) -> None:
    stored = copy.deepcopy(gaussian_tables(SHIFTED).to_json())
    edit(stored)
    with pytest.raises(TableError):
        Tables.from_json(stored)


SMALL = [[TOTAL - 2, 2], [TOTAL - 4, 1, 2]]


def test_small_tables_are_read() -> None:
    tables = Tables.from_json({"thresholds": [5], "y": SMALL, "z": []})
    assert tables == Tables((5,), (Table(0, (TOTAL - 2, 2)), Table(-1, (1, TOTAL - 4, 1, 2))))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, json_values, json_values)
def test_any_other_json_is_refused(thresholds: Any, y: Any, z: Any) -> None:
    for stored in (thresholds, {"thresholds": thresholds, "y": y, "z": z}):
        with pytest.raises(TableError):
            Tables.from_json(stored)
    if z not in ([], ""):
        with pytest.raises(TableError):
            Tables.from_json({"thresholds": [5], "y": SMALL, "z": z})


def likelihoods(density: FactorizedDensity, widest: int) -> np.ndarray:
    """Return the probabilities `[C, 2 widest + 1]` of integers, from the density's cumulative function."""
    with torch.no_grad():
        edges = (torch.arange(2 * widest + 2) - widest - 0.5).expand(density.channels, 1, -1)
        cumulative = torch.sigmoid(density.double().logits(edges.double()))
        return cumulative.diff(dim=-1)[:, 0].numpy()


@pytest.mark.parametrize(
    ("spread", "slack", "escaped", "width"),
    [(0.3, 2e-4, 2**-15, 40), (1.0, 0.01, 2**-13, 512), (10.0, 0.01, 2**-13, 512)],
)
def test_density_tables_cover_the_density_at_its_code_length(
    spread: float, slack: float, escaped: float, width: int
) -> None:
    density = FactorizedDensity(4, init_scale=spread)
    for table, row in zip(density_tables(density), likelihoods(density, 256), strict=True):
        inside = row[table.low + 256 : table.high + 257]
        assert inside.sum() >= 1 - escaped
        assert len(inside) < width
        assert table.low < row.argmax() - 256 < table.high
        ideal = -sum(p * math.log2(p) for p in row if p > 1e-30)
        cost = sum(p * code_length(table, k - 256) for k, p in enumerate(row))
        # The density's own estimate adds 1e-5 to every likelihood, so that a table may give away the same.
        assert ideal - 1e-4 <= cost <= ideal + slack


def test_density_tables_follow_channel_order_and_sign() -> None:
    density = FactorizedDensity(3, init_scale=1.0)
    with torch.no_grad():
        for parameter in density.biases:
            parameter.zero_()
        density.biases[0].copy_(torch.tensor([-20.0, 0.0, 30.0])[:, None, None].expand(3, 3, 1))
    expected = likelihoods(density, 256).argmax(1) - 256
    assert len(set(expected.tolist())) == 3
    for table, mode in zip(density_tables(density.float()), expected, strict=True):
        assert table.low + int(np.argmax(table.frequencies[:-1])) == mode


def test_indices_with_zero_count_can_be_coded() -> None:
    counts = torch.zeros(100, dtype=torch.long)
    counts[[3, 99]] = torch.tensor([1_000_000, 500])
    table = index_table(counts)
    assert len(table.frequencies) == 100
    assert table.low == 0
    model, indices, encoder = IndexModel(table), np.arange(100, dtype=np.int32), AnsEncoder()
    model.push(encoder, indices)
    decoder = AnsDecoder(encoder.payload())
    assert model.pop(decoder, 100).tolist() == indices.tolist()
    decoder.finish()
    # Laplace's rule, to the unit of a frequency.
    assert 24 - math.log2(table.frequencies[3]) == pytest.approx(math.log2(1_000_600 / 1_000_001), abs=1e-4)
    assert table.frequencies[99] == pytest.approx(501 / 1_000_600 * TOTAL, abs=1)
    assert table.frequencies[50] == pytest.approx(1 / 1_000_600 * TOTAL, abs=1)
