"""The edge term against ramps and steps, whose slopes are known."""

import pytest
import torch

from glc.losses.edges import EdgeDistance


def test_a_ramp_has_its_slope() -> None:
    across = torch.arange(8.0) * 0.1
    x = torch.stack([across.expand(8, 8), across.expand(8, 8).T * 3, torch.zeros(8, 8)])[None]
    magnitudes = EdgeDistance(floor=1e-6).magnitudes(x)
    assert magnitudes.shape == (1, 3, 6, 6)
    wanted = torch.tensor([0.1, 0.3, 0.0])[None, :, None, None].expand(1, 3, 6, 6)
    torch.testing.assert_close(magnitudes, wanted, atol=2e-6, rtol=0)


def test_distance_is_the_mean_difference_of_magnitudes_per_image() -> None:
    ramp = (torch.arange(8.0) * 0.1).expand(1, 3, 8, 8)
    flat = torch.full((1, 3, 8, 8), 0.7)
    diagonal = ramp + ramp.transpose(2, 3)  # slope 0.1 in both directions
    x, y = torch.cat([ramp, ramp, diagonal]), torch.cat([flat, ramp.flip(3), flat])
    found = EdgeDistance(floor=1e-6)(x, y)
    # A mirrored ramp has the same sharpness: direction does not count.
    torch.testing.assert_close(found, torch.tensor([0.1, 0.0, 0.1 * 2**0.5]), atol=2e-6, rtol=0)


def test_gradients_of_a_flat_image_are_finite() -> None:
    x = torch.zeros(1, 3, 8, 8, requires_grad=True)
    EdgeDistance()(x, torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("side", [3, 5])
def test_step_edge_by_hand(side: int) -> None:
    x = torch.zeros(1, 1, 3, side)
    x[..., side // 2 + 1 :] = 1.0  # the centre's right neighbour: 4/8 of the step
    found = EdgeDistance(floor=1e-6).magnitudes(x)[0, 0, 0, side // 2 - 1]
    assert found.item() == pytest.approx(0.5, abs=1e-5)
