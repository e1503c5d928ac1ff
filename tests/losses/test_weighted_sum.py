import pytest
import torch

from glc.losses import weighted_sum


def test_sums_weighted_terms_over_broadcast_shapes() -> None:
    terms = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(10.0), "logged": torch.tensor([5.0, 5.0])}
    torch.testing.assert_close(weighted_sum(terms, {"a": 3.0, "b": 0.5}), torch.tensor([8.0, 11.0]))


def test_terms_of_weight_zero_take_no_part_whatever_they_are() -> None:
    terms = {"a": torch.tensor([1.0]), "broken": torch.tensor([float("nan")])}
    torch.testing.assert_close(weighted_sum(terms, {"a": 2.0, "broken": 0.0}), torch.tensor([2.0]))


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}])
def test_nothing_weighs_nothing(weights: dict[str, float]) -> None:
    total = weighted_sum({"a": torch.tensor([1.0, 2.0])}, weights)
    assert torch.equal(total + torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))


def test_a_weight_without_a_term_is_an_error_that_names_both() -> None:
    with pytest.raises(KeyError, match=r"no loss term named lipps; there are l1, lpips"):
        weighted_sum({"lpips": torch.ones(1), "l1": torch.ones(1)}, {"l1": 1.0, "lipps": 1.0})
    weighted_sum({"l1": torch.ones(1)}, {"l1": 1.0, "lipps": 0.0})  # not wanted, not missed


def test_gradients_are_the_weights() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    weighted_sum({"a": a, "b": b}, {"a": 2.0, "b": -0.25}).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.tolist() == [2.0, 2.0]
    assert b.grad.tolist() == [-0.25, -0.25]
