import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from glc.errors import SettingError
from glc.losses.edges import EdgeDistance
from glc.losses.perceptual import LPIPS, RandomAugmentation, WeightsUnavailable
from glc.losses.reconstruction import PerceptualMixture, ReconstructionLoss, load_perceptual
from glc.losses.terms import weighted_sum
from tests.losses.test_perceptual import FILES, reference, save_features


class Signed(nn.Module):
    """Stands for LPIPS; tells its arguments apart."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - 2 * y).mean((1, 2, 3))


def test_l1_is_the_mean_error_per_image() -> None:
    x = torch.zeros(2, 3, 4, 4)
    x_hat = torch.zeros(2, 3, 4, 4)
    x_hat[0] = 0.5
    x_hat[1, 0, 0] = -1  # 4 of 48 values
    terms = ReconstructionLoss()(x, x_hat)
    assert terms.keys() == {"l1"}
    torch.testing.assert_close(terms["l1"], torch.tensor([0.5, 1 / 12]))


def test_perceptual_distance_is_a_separate_term() -> None:
    x, x_hat = torch.full((2, 3, 4, 4), 3.0), torch.full((2, 3, 4, 4), 1.0)
    terms = ReconstructionLoss(Signed())(x, x_hat)
    torch.testing.assert_close(terms["lpips"], torch.tensor([-5.0, -5.0]))
    torch.testing.assert_close(terms["l1"], torch.tensor([2.0, 2.0]))


def test_weight_of_a_missing_distance_is_ignored() -> None:
    weights = {"l1": 1.0, "lpips": 1.0, "other": 2.0}
    assert ReconstructionLoss().usable(weights) == {"l1": 1.0, "other": 2.0}
    assert ReconstructionLoss(Signed()).usable(weights) == weights


class Two(nn.Module):
    """Returns two terms, and records its inputs."""

    terms = ("near", "far")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        self.seen.append((x, y))
        return {"near": (x - y).abs().mean((1, 2, 3)), "far": 10 * (x - y).abs().mean((1, 2, 3))}


def test_terms_of_a_mixture_are_logged_and_weighted_by_name() -> None:
    x, x_hat = torch.full((2, 3, 4, 4), 3.0), torch.full((2, 3, 4, 4), 1.0)
    mixture = PerceptualMixture({"lpips": Signed(), "two": Two()}, {"near": 0.5, "far": 0.25})
    loss = ReconstructionLoss(mixture)
    terms = loss(x, x_hat)
    assert {name: value.tolist() for name, value in terms.items()} == {
        "l1": [2, 2],
        "lpips": [-5, -5],  # the estimate first
        "near": [2, 2],
        "far": [20, 20],
    }
    weights = loss.usable({"l1": 1.0, "lpips": 2.0})
    assert weights == {"l1": 1, "lpips": 2, "near": 0.5, "far": 0.25}
    assert weighted_sum(terms, weights).tolist() == [2 - 10 + 1 + 5] * 2
    assert loss.usable({"l1": 1.0, "lpips": 1.0, "far": 0.0})["far"] == 0  # the stage takes precedence
    assert ReconstructionLoss(RandomAugmentation(mixture)).usable({"lpips": 1.0}).keys() == {
        "lpips",
        "near",
        "far",
    }


def test_one_augmented_pair_for_all_networks() -> None:
    first, second = Two(), Two()
    second.forward = lambda x, y: second.seen.append((x, y)) or {}  # type: ignore[method-assign,assignment,func-returns-value]
    augmented = RandomAugmentation(
        PerceptualMixture({"a": first, "b": second}, {}), generator=torch.Generator().manual_seed(0)
    ).train()
    x, y = torch.rand(2, 1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    for _ in range(4):
        augmented(x, y)
    assert len(first.seen) == len(second.seen) == 4
    for pair, other in zip(first.seen, second.seen, strict=True):
        assert all(a is b for a, b in zip(pair, other, strict=True))
    assert len({(*pair[0].shape, pair[0].sum().item()) for pair in first.seen}) == 4


def test_equal_names_and_unknown_weights_are_refused() -> None:
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(SettingError, match=r"perceptual\.terms\.b: the term near exists already"):
        PerceptualMixture({"a": Two(), "b": Two()}, {})(x, x)
    with pytest.raises(
        SettingError, match=r"perceptual\.weights\.edge: no such term; .* lpips, edges, near, far"
    ):
        load_perceptual("alex", terms={"edges": EdgeDistance, "two": Two}, weights={"edge": 1.0})


@pytest.mark.usefixtures("offline")
def test_unavailable_terms_of_a_mixture_are_named_or_omitted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    terms = {"other": partial(LPIPS, net="squeeze", weights_dir=tmp_path), "edges": EdgeDistance, "off": None}
    weights = {"other": 0.5, "edges": 2.0}
    with pytest.raises(WeightsUnavailable, match=r"(?s)alexnet.*perceptual\.required=false$"):
        load_perceptual("alex", str(tmp_path), terms=terms, weights=weights)
    save_features(reference("alex"), tmp_path / FILES["alex"])
    with pytest.raises(WeightsUnavailable, match=r"(?s)squeezenet.*perceptual\.terms\.other=null"):
        load_perceptual("alex", str(tmp_path), terms=terms, weights=weights)
    with caplog.at_level(logging.WARNING):
        mixed = load_perceptual(
            "alex", str(tmp_path), required=False, augment=True, terms=terms, weights=weights
        )
    assert "without the term `other`" in caplog.text
    assert isinstance(mixed, RandomAugmentation)
    assert isinstance(mixed.distance, PerceptualMixture)
    assert mixed.distance.distances.keys() == {"lpips", "edges"}
    assert mixed.distance.weights == {"edges": 2.0}
    assert isinstance(load_perceptual("alex", str(tmp_path), terms={"off": None}), LPIPS)
    # The weights of a distance that is set to null may stay.
    two = load_perceptual(
        "alex", str(tmp_path), terms={"off": None, "edges": EdgeDistance}, weights={"near": 1.0}
    )
    assert isinstance(two, PerceptualMixture)
    assert two.weights == {}


@pytest.mark.usefixtures("offline")
def test_missing_weights_raise_or_warn(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WeightsUnavailable, match=r"(?s)alexnet.*perceptual\.required=false"):
        load_perceptual("alex")
    with caplog.at_level(logging.WARNING):
        assert load_perceptual("alex", required=False) is None
    (record,) = caplog.records
    assert "without the term `lpips`" in record.getMessage()
    assert "\n" not in record.getMessage()
