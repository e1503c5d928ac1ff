"""The projected discriminator on tiny features, and the differentiable augmentations by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.losses.adversarial import AdversarialLoss
from glc.losses.projected import DifferentiableAugmentation, ProjectedDiscriminator


class Pyramid(nn.Module):
    """Three maps: the image at strides 2, 4 and 8, with 3, 6 and 3 channels; one weight, to be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> list[Tensor]:
        halves = [self.gain * F.avg_pool2d(x, 2**i) for i in (1, 2, 3)]
        return [halves[0], torch.cat([halves[1], -halves[1]], 1), halves[2]]


def images(count: int = 2, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_one_map_of_logits_per_scale() -> None:
    torch.manual_seed(0)
    logits = ProjectedDiscriminator(Pyramid(), channels=8)(images())
    assert [tuple(head.shape) for head in logits] == [(2, 1, 16, 16), (2, 1, 8, 8), (2, 1, 4, 4)]


def test_mixtures_by_hand() -> None:
    torch.manual_seed(0)
    network, x = ProjectedDiscriminator(Pyramid(), channels=8), images()
    with torch.no_grad():
        fine, middle, coarse = Pyramid()(x)
        weights = [conv.weight[..., 0, 0] for conv in network.across_channels]  # type: ignore[union-attr,index]
        by_hand = torch.einsum("oc,bchw->bohw", weights[2], coarse)
        torch.testing.assert_close(network.mixtures(x)[2], by_hand)
        for i, level in ((1, middle), (0, fine)):
            up = F.interpolate(by_hand, scale_factor=2, mode="bilinear")
            spread = F.conv2d(up, network.across_scales[i].weight, padding=1)  # type: ignore[arg-type]
            by_hand = torch.einsum("oc,bchw->bohw", weights[i], level) + spread
            torch.testing.assert_close(network.mixtures(x)[i], by_hand, rtol=1e-4, atol=1e-5)


def test_only_heads_are_trained_and_features_are_not_stored() -> None:
    torch.manual_seed(0)
    network = ProjectedDiscriminator(Pyramid(), channels=8)
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"heads"}
    stored = {name.split(".")[0] for name in network.state_dict()}
    assert stored == {"heads", "across_channels", "across_scales"}  # the random projections resume
    x_hat = images().requires_grad_()
    adversarial = AdversarialLoss(network)
    loss, _ = adversarial.discriminator_loss(images(), x_hat, 0)
    loss.backward()
    assert x_hat.grad is None
    assert all(p.grad is not None for p in network.heads.parameters())
    (-sum(head.mean() for head in adversarial.logits(x_hat))).backward()  # type: ignore[operator]
    assert x_hat.grad is not None
    assert x_hat.grad.abs().sum() > 0


def test_heads_learn_to_tell_noise_from_smooth_images() -> None:
    torch.manual_seed(0)
    network = ProjectedDiscriminator(Pyramid(), channels=8)
    adversarial = AdversarialLoss(network)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 5e-3)
    losses = []
    for _ in range(40):
        noise = torch.rand(4, 3, 32, 32) * 2 - 1
        smooth = F.interpolate(torch.rand(4, 3, 4, 4) * 2 - 1, (32, 32), mode="bilinear")
        loss, _ = adversarial.discriminator_loss(smooth, noise, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.8
    assert losses[-1] < 0.3


# Augmentations ------------------------------------------------------------------------------------


def test_colours_change_but_positions_do_not() -> None:
    torch.manual_seed(0)
    x = images(64, 8)
    out = DifferentiableAugmentation(["colour"])(x)
    grey, changed = x.mean(1), out.mean(1)
    # Grey values are scaled by 0.5 to 1.5 and shifted: one affine map for each image.
    spread = (changed - changed.mean((1, 2), keepdim=True)) / (grey - grey.mean((1, 2), keepdim=True))
    assert (spread.amax((1, 2)) - spread.amin((1, 2))).max() < 1e-2
    contrast = spread.mean((1, 2))
    assert contrast.min() > 0.49
    assert contrast.max() < 1.51
    assert contrast.max() - contrast.min() > 0.8  # each image has its own
    shift = (out - x).mean((1, 2, 3))
    assert shift.abs().max() <= 0.5 + 1e-5
    assert shift.max() - shift.min() > 0.8


def test_translation_shifts_and_fills_with_zeros() -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    x = (1 + columns + 100 * rows).expand(32, 1, 16, 16)
    out = DifferentiableAugmentation(["translation"])(x)
    seen = set()
    for image in out[:, 0]:
        down, right = next(
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(image, F.pad(x[0, 0], (dx, -dx, dy, -dy)))
        )
        seen.add((down, right))
    assert len(seen) > 10
    assert {down for down, _ in seen} == {right for _, right in seen} == set(range(-2, 3))


def test_cutout_covers_a_square_of_half_the_side_or_less_at_the_border() -> None:
    torch.manual_seed(0)
    out = DifferentiableAugmentation(["cutout"])(torch.ones(200, 3, 16, 16))
    covered = out[:, 0] == 0
    assert torch.equal(covered, out[:, 2] == 0)
    heights = covered.any(2).sum(1)
    widths = covered.any(1).sum(1)
    assert torch.equal(heights * widths, covered.sum((1, 2)))  # a rectangle
    assert heights.max() == widths.max() == 8
    assert heights.min() >= 4


def test_gradient_is_that_of_the_visible_pixels() -> None:
    x = torch.ones(8, 3, 16, 16, requires_grad=True)
    torch.manual_seed(0)
    out = DifferentiableAugmentation(["translation", "cutout"])(x)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.unique().tolist() == [0, 1]
    assert x.grad.sum() == out.sum()


def test_unknown_changes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"policy=\['color'\]: 'color' is unknown; choose of colour, translation"
    ):
        DifferentiableAugmentation(["color"])
