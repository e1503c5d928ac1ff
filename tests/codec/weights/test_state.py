"""Sub-dicts, differences and half precision of state dicts."""

import pytest
import torch

from glc.codec.weights.state import difference, half_precision, strip_prefix
from glc.errors import WeightsError


def test_strip_prefix_matches_complete_names() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    state = {"model.encoder.w": a, "model.encoder.b.c": b, "model.encoder2.w": b, "encoder.w": b}
    found = strip_prefix(state, "model.encoder")
    assert list(found) == ["w", "b.c"]
    assert found["w"] is a
    assert strip_prefix(state, "coder") == {}


def test_no_difference_is_an_empty_string() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.zeros(())}
    assert difference(state, dict(reversed(state.items()))) == ""
    assert difference(state, {"a": (2, 3), "b": ()}) == ""
    assert difference({"loss.x": (1,), "a": (2,)}, {"a": (2,)}, ignored=("loss.",)) == ""


def test_the_first_differences_of_each_kind_are_named() -> None:
    found = {"a": torch.zeros(2, 3), "more.1": (1,), "more.2": (1,)}
    expected = {"x.1": (1,), "x.2": (1,), "x.3": (1,), "x.4": (1,), "a": (3, 2)}
    assert difference(found, expected) == (
        "missing: x.1, x.2, x.3 and 1 more; unexpected: more.1, more.2; "
        "of another shape: a is [2, 3], not [3, 2]"
    )
    assert difference(found, expected, limit=1).startswith(
        "missing: x.1 and 3 more; unexpected: more.1 and 1 more;"
    )


def test_half_precision_converts_only_floats() -> None:
    halved = half_precision({"w": torch.tensor([1 / 3]), "flag": torch.tensor(True)}, "some.ckpt")
    assert halved["w"].dtype == torch.float16
    assert halved["w"].item() == 0.333251953125
    assert halved["flag"].dtype == torch.bool


def test_overflow_of_half_precision_is_named() -> None:
    with pytest.raises(WeightsError, match=r"some\.ckpt: big exceeds half precision; export without --half"):
        half_precision({"fits": torch.tensor([65504.0]), "big": torch.tensor([65520.0])}, "some.ckpt")
