import torch

from glc.losses.latent import RateLoss


def test_counts_bits_per_latent_position() -> None:
    terms = RateLoss()(torch.tensor([60.0, 30.0]), torch.tensor([6.0, 15.0]), torch.zeros(2, 256, 3, 5))
    assert terms.keys() == {"rate_y", "rate_z"}
    torch.testing.assert_close(terms["rate_y"], torch.tensor([4.0, 2.0]))
    torch.testing.assert_close(terms["rate_z"], torch.tensor([0.4, 1.0]))
