from pathlib import Path

import pytest
import torch
from torch import Tensor

from glc.losses.perceptual import LPIPS
from glc.losses.style import StyleLoss, gram
from tests.short_runs import stand_in_weights


@pytest.fixture(scope="module")
def loss(tmp_path_factory: pytest.TempPathFactory) -> StyleLoss:
    return StyleLoss(LPIPS("squeeze", stand_in_weights(tmp_path_factory.mktemp("weights"))), [1, 3])


def test_gram_values() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # two channels, two places
    assert torch.equal(gram(features), torch.tensor([[[2.5, 0.5], [0.5, 5.0]]]))


def noise(batch: int = 1, side: int = 64) -> Tensor:
    return torch.rand(batch, 3, side, side) * 2 - 1


def test_content_depends_on_positions_and_style_does_not(loss: StyleLoss) -> None:
    x = noise()
    # All pixels of a tile that repeats move by one tile: nothing changes. Of a flip the content does.
    tile = noise(side=32).repeat(1, 1, 4, 4)
    moved = tile.roll((32, 64), (2, 3))
    flipped = x.flip(3)
    same = loss(tile, moved, loss.style_of(tile))
    other = loss(x, flipped, loss.style_of(flipped))
    assert same["content"].item() < 1e-8
    assert same["style"].item() < 1e-8
    assert other["content"].item() > 0.01
    assert other["style"].item() < 1e-10


def test_terms_are_relative_and_per_image(loss: StyleLoss) -> None:
    x, style = noise(2), loss.style_of(noise())
    both = loss(x, x, style)
    assert both["content"].tolist() == [0, 0]
    one = loss(x[1:], x[1:], style)
    assert both["style"][1].item() == pytest.approx(one["style"].item(), rel=1e-4)
    with torch.no_grad():
        grams = [gram(f) for f in loss.features(x[1:])]
    wanted = [float((g - s).square().sum() / s.square().sum()) for g, s in zip(grams, style, strict=True)]
    assert one["style"].item() == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)


def test_only_the_image_gets_a_gradient(loss: StyleLoss) -> None:
    x_hat = noise().requires_grad_()
    loss(noise(), x_hat, loss.style_of(noise()))["style"].sum().backward()
    assert x_hat.grad is not None
    assert x_hat.grad.abs().sum() > 0
    assert not list(loss.parameters())
    assert not loss.state_dict()


def test_invalid_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set perceptual\.required=true"):
        StyleLoss(None)
    network = LPIPS("squeeze", stand_in_weights(tmp_path))
    with pytest.raises(ValueError, match=r"stage\.content_layers=.* indices of the network's layers, 0 to 6"):
        StyleLoss(network, [7])
