import math

import pytest
import torch
from torch import Tensor, nn

from glc.losses.latent import CodebookLoss, CodePredictionLoss, RateLoss
from glc.models.code_predictor import CodePredictor


def test_rate_is_bits_per_latent_position() -> None:
    terms = RateLoss()(torch.tensor([60.0, 30.0]), torch.tensor([6.0, 15.0]), torch.zeros(2, 256, 3, 5))
    assert terms.keys() == {"rate_y", "rate_z"}
    torch.testing.assert_close(terms["rate_y"], torch.tensor([4.0, 2.0]))
    torch.testing.assert_close(terms["rate_z"], torch.tensor([0.4, 1.0]))


@pytest.mark.parametrize(("beta", "expected"), [(0.25, 1.25), (1.0, 2.0), (0.0, 1.0)])
def test_codebook_loss_is_a_mean_per_image(beta: float, expected: float) -> None:
    vectors = torch.zeros(2, 1, 2, 2)
    codes = vectors.clone()
    codes[1, 0, 0, 0] = 2
    torch.testing.assert_close(CodebookLoss(beta)(vectors, codes), torch.tensor([0.0, expected]))


def test_beta_weights_the_commitment_term() -> None:
    vectors = torch.randn(1, 3, 2, 2, requires_grad=True)
    codes = torch.randn(1, 3, 2, 2, requires_grad=True)
    to_vectors, to_codes = torch.autograd.grad(CodebookLoss(0.25)(vectors, codes).sum(), [vectors, codes])
    difference = (codes - vectors).detach() / 12  # of 12 elements
    torch.testing.assert_close(to_codes, 2 * difference)
    torch.testing.assert_close(to_vectors, -0.25 * 2 * difference)


def test_a_fixed_codebook_has_no_loss() -> None:
    vectors = torch.randn(2, 3, 2, 2, requires_grad=True)
    assert CodebookLoss()(vectors, None).tolist() == [0, 0]


class Fixed(nn.Module):
    """Predicts the same logits `[h, w, M]` for every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, latent: Tensor) -> Tensor:
        return self.logits.expand(len(latent), -1, -1, -1)


def test_code_prediction_loss_values() -> None:
    # Probabilities 3/4, 1/4 at the left position, 1/2, 1/2 at the right one.
    logits = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0]]])
    latent, latent_hat = torch.zeros(2, 2, 1, 2), torch.zeros(2, 2, 1, 2)
    latent_hat[1, 0, 0, 0] = 4.0
    terms = CodePredictionLoss(Fixed(logits))(latent, latent_hat, torch.tensor([[[0, 0]], [[1, 0]]]))
    expected = [(math.log(4 / 3) + math.log(2)) / 2, (math.log(4) + math.log(2)) / 2]
    torch.testing.assert_close(terms["code_ce"], torch.tensor(expected))
    torch.testing.assert_close(terms["latent_mse"], torch.tensor([0.0, 4.0]))


@pytest.mark.parametrize("indices", [None, torch.zeros(1, 2, 2, dtype=torch.long)])
def test_without_predictor_only_latent_mse_is_returned(indices: Tensor | None) -> None:
    terms = CodePredictionLoss(None)(torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), indices)
    assert terms.keys() == {"latent_mse"}
    torch.testing.assert_close(terms["latent_mse"], torch.ones(1))


def test_gradient_reaches_predictor_and_coded_latent() -> None:
    predictor = CodePredictor(4, 10, width=8, heads=2, layers=1, grid=2)
    latent = torch.randn(2, 4, 2, 2, requires_grad=True)
    latent_hat = torch.randn(2, 4, 2, 2, requires_grad=True)
    terms = CodePredictionLoss(predictor)(latent, latent_hat, torch.randint(10, (2, 2, 2)))
    terms["code_ce"].sum().backward()
    assert latent.grad is None
    assert latent_hat.grad is not None
    assert (latent_hat.grad != 0).any(1).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in predictor.parameters())


def test_cross_entropy_is_computed_in_full_precision() -> None:
    latent = torch.randn(1, 4, 2, 2)
    logits = 20 * torch.randn(2, 2, 64)
    indices = torch.randint(64, (1, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        terms = CodePredictionLoss(Fixed(logits))(latent, latent, indices)
    exact = nn.functional.cross_entropy(logits.double().flatten(0, 1), indices.flatten())
    assert terms["code_ce"].dtype == torch.float32
    torch.testing.assert_close(terms["code_ce"].double(), exact.view(1), atol=1e-5, rtol=1e-5)
