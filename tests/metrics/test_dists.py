"""DISTS around stand-in weights of VGG16 (the published ones are not in the project)."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import dists
from torchvision.models import vgg16

from glc.losses.perceptual import WeightsUnavailable
from glc.metrics import DISTS

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def stand_in() -> nn.Sequential:
    """The features of VGG16 with seeded weights that neither fade nor explode."""
    with torch.device("meta"):
        layers = vgg16().features
    layers.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(3)
    for parameter in layers.parameters():
        deviation = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.data.normal_(0, deviation, generator=generator)
    return layers


@pytest.fixture
def folder(stand_in: nn.Sequential, tmp_path: Path) -> Path:
    state = {f"features.{name}": value for name, value in stand_in.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16-mine.pth")
    return tmp_path


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = nn.functional.interpolate(
        torch.rand(3, 3, 6, 8, generator=generator) * 2 - 1, (48, 64), mode="bilinear"
    )
    noise = torch.randn(x.shape, generator=generator) * torch.tensor([0.0, 0.1, 0.5]).view(3, 1, 1, 1)
    return x, (x + noise).clamp(-1, 1)


def test_dists_is_that_of_torchmetrics(
    folder: Path, stand_in: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dists, "vgg16", lambda weights: nn.ModuleDict({"features": stand_in}))
    x, x_hat = images()
    expected = dists.deep_image_structure_and_texture_similarity(
        (x_hat + 1) / 2, (x + 1) / 2, reduction="none"
    )
    metric = DISTS(folder)
    got = metric(x, x_hat)
    torch.testing.assert_close(got, expected.clone(), rtol=1e-4, atol=1e-6)
    assert got[0].item() == pytest.approx(0, abs=1e-5)
    assert 0.001 < got[1] < got[2]
    one = metric(x[1:2], x_hat[1:2])
    assert one.shape == (1,)
    assert not [*metric.state_dict(), *metric.parameters()]  # the network stays out of checkpoints
    torch.testing.assert_close(one, got[1:2], rtol=1e-4, atol=1e-6)


def test_missing_and_wrong_weights_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"vgg16-397923af\.pth.*Fix: "):
        DISTS()
    torch.save({"features.0.weight": torch.zeros(1)}, folder / "vgg16-mine.pth")
    with pytest.raises(ValueError, match=r"vgg16-mine\.pth: not the weights of VGG16"):
        DISTS(folder)
