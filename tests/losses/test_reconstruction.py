import logging

import pytest
import torch
from torch import Tensor, nn

from glc.losses.perceptual import WeightsUnavailable
from glc.losses.reconstruction import ReconstructionLoss, load_perceptual


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


@pytest.mark.usefixtures("offline")
def test_missing_weights_raise_or_warn(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WeightsUnavailable, match=r"(?s)alexnet.*perceptual\.required=false"):
        load_perceptual("alex")
    with caplog.at_level(logging.WARNING):
        assert load_perceptual("alex", required=False) is None
    (record,) = caplog.records
    assert "without the term `lpips`" in record.getMessage()
    assert "\n" not in record.getMessage()
