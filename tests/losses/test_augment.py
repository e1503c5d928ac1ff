"""Random augmentations: the same for both images, different in each call, none in evaluation."""

import pytest
import torch
from torch import Tensor, nn

from glc.losses.augment import LEAST, RandomAugmentation
from glc.losses.style import StyleLoss


class Difference(nn.Module):
    """Records its first input."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen = x.detach()
        return (x - y).abs().mean((1, 2, 3))


def test_both_images_get_the_same_augmentation_and_none_in_evaluation() -> None:
    distance = Difference()
    augmented = RandomAugmentation(distance)
    x = torch.rand(2, 3, 64, 64)
    for _ in range(20):
        assert augmented(x, x.clone()).eq(0).all()
    augmented.eval()(x, x)
    assert distance.seen.equal(x)


def test_augmentations_vary_position_orientation_and_size() -> None:
    distance = Difference()
    augmented = RandomAugmentation(distance)
    ramp = (torch.arange(64.0) + 64 * torch.arange(64.0)[:, None]).expand(1, 3, 64, 64)
    corners, sizes, turned = set(), set(), 0
    for _ in range(60):
        augmented(ramp, ramp)
        corners.add(distance.seen[0, 0, 0, 0].item())
        sizes.add(tuple(distance.seen.shape[-2:]))
        right, down = (distance.seen[0, 0, 2:-2, 2:-2].diff(dim=d).abs().mean() for d in (1, 0))
        turned += bool(right > down)
    assert len(corners) > 30
    assert min(min(size) for size in sizes) < 48
    assert max(max(size) for size in sizes) > 58
    assert 15 < turned < 45


@pytest.mark.parametrize("size", [(24, 80), (32, 32), (33, 47), (65, 65)])
def test_augmentations_keep_the_minimum_side(size: tuple[int, int]) -> None:
    augmented = RandomAugmentation(Difference())
    least = min(*size, LEAST)
    x = torch.rand(1, 3, *size)
    for _ in range(60):
        (seen,) = augmented.augment(x)
        assert min(seen.shape[-2:]) >= least
        assert max(seen.shape[-2:]) <= max(size)


def test_gradient_reaches_the_uncropped_pixels() -> None:
    augmented = RandomAugmentation(Difference())
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    augmented(x, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert x.grad is not None
    assert x.grad[..., 8:, 8:].ne(0).all()


def test_style_loss_refuses_augmentation() -> None:
    with pytest.raises(ValueError, match=r"perceptual\.augment=false"):
        StyleLoss(RandomAugmentation(Difference()))
