import pytest
import torch

from glc.losses.latent import CodebookLoss
from glc.models.quantizer import VectorQuantizer


@pytest.mark.parametrize(("beta", "expected"), [(0.25, 5.0), (1.0, 8.0), (0.0, 4.0)])
def test_value_by_hand(beta: float, expected: float) -> None:
    vectors, codes = torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), 3.0)
    loss = CodebookLoss(beta)(vectors, codes)
    torch.testing.assert_close(loss, torch.full((2,), expected))


def test_is_a_mean_per_picture() -> None:
    vectors = torch.zeros(2, 1, 2, 2)
    codes = vectors.clone()
    codes[1, 0, 0, 0] = 2
    torch.testing.assert_close(CodebookLoss(0.5)(vectors, codes), torch.tensor([0.0, 1.5]))


def test_beta_weights_the_commitment_and_not_the_codes() -> None:
    vectors = torch.randn(1, 3, 2, 2, requires_grad=True)
    codes = torch.randn(1, 3, 2, 2, requires_grad=True)
    to_vectors, to_codes = torch.autograd.grad(CodebookLoss(0.25)(vectors, codes).sum(), [vectors, codes])
    difference = (codes - vectors).detach() / 12  # of 12 elements
    torch.testing.assert_close(to_codes, 2 * difference)
    torch.testing.assert_close(to_vectors, -0.25 * 2 * difference)


def test_trains_the_codes_in_use_and_the_vectors() -> None:
    quantizer = VectorQuantizer(8, 4)
    torch.nn.init.normal_(quantizer.embedding)
    x = torch.randn(1, 4, 2, 1, requires_grad=True)
    out = quantizer(x)
    CodebookLoss()(x, out.codes).sum().backward()
    assert quantizer.embedding.grad is not None
    touched = quantizer.embedding.grad.abs().sum(1).nonzero().flatten()
    assert touched.tolist() == out.indices.unique().tolist()
    assert x.grad is not None
    assert (x.grad != 0).all()
