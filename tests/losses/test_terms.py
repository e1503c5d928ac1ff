import pytest
import torch
from torch import Tensor, nn

from glc.errors import SettingError
from glc.losses.terms import AddedLosses, weighted_sum


def test_sums_weighted_terms_over_broadcast_shapes() -> None:
    terms = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(10.0), "logged": torch.tensor([5.0, 5.0])}
    total = weighted_sum(terms, {"a": 3.0, "b": 0.5, "logged": 0})
    torch.testing.assert_close(total, torch.tensor([8.0, 11.0]))
    # Terms of weight zero are ignored, even NaN.
    terms = {"a": torch.tensor([1.0, 2.0]), "broken": torch.tensor([torch.nan, 1.0])}
    assert weighted_sum(terms, {"a": 2.0, "broken": 0.0}).tolist() == [2.0, 4.0]
    assert weighted_sum(terms, {"a": 0.0, "broken": 0.0}).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_weight_without_a_term_is_refused(weight: float) -> None:
    message = r"^stage\.weights\.lipps: no such loss term; the terms are l1, lpips$"
    with pytest.raises(SettingError, match=message):
        weighted_sum({"lpips": torch.ones(1), "l1": torch.ones(1)}, {"l1": 1.0, "lipps": weight})


def test_a_term_without_a_weight_is_refused() -> None:
    message = r"^stage\.distortion_weights\.edge: this loss term has no weight; .*There are weights for l1$"
    with pytest.raises(SettingError, match=message):
        weighted_sum({"l1": torch.ones(1), "edge": torch.ones(1)}, {"l1": 1.0}, "stage.distortion_weights")


def test_gradients_equal_the_weights() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    weighted_sum({"a": a, "b": b}, {"a": 2.0, "b": -0.25}).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.tolist() == [2.0, 2.0]
    assert b.grad.tolist() == [-0.25, -0.25]


class Returns(nn.Module):
    """Returns what it was told to."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, x_hat: Tensor) -> object:
        return self.value


class Peak(nn.Module):
    """Two terms, one per image and one per batch."""

    def forward(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        error = (x - x_hat).abs().flatten(1)
        return {"peak": error.amax(1), "highest": error.max()}


def test_added_losses_get_the_stage_inputs() -> None:
    x, x_hat = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    x_hat[1, 2, 3, 3] = 5.0
    own = {"l1": torch.ones(2)}
    terms = AddedLosses({"mine": Peak(), "off": None})(own, x, x_hat)
    assert {name: value.tolist() for name, value in terms.items()} == {
        "l1": [1.0, 1.0],
        "peak": [0.0, 5.0],
        "highest": 5.0,
    }
    assert own.keys() == {"l1"}
    assert AddedLosses()(own, x, x_hat) == own


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2), r"returned a Tensor; return terms by name, \{name: value\}"),
        ({"l1": torch.zeros(2)}, r"the term l1 exists already; rename it"),
        ({"edge": torch.zeros(2, 4, 4)}, r"edge is \[2, 4, 4\]; .*one value per image, \[2\], or a scalar"),
        ({"edge": 0.5}, r"edge is float; return a tensor"),
    ],
)
def test_invalid_loss_output_names_the_loss(value: object, message: str) -> None:
    losses = AddedLosses({"edge": Returns(value)})
    with pytest.raises(SettingError, match=rf"^stage\.losses\.edge: {message}"):
        losses({"l1": torch.ones(2)}, torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))


def test_loss_that_is_not_a_module_is_refused() -> None:
    with pytest.raises(SettingError, match=r"^stage\.losses\.edge: is a float; give a torch module"):
        AddedLosses({"edge": 1.0})  # type: ignore[dict-item]
