"""The maps of EfficientNet-Lite0 (tests/metrics/test_small_features.py compares them with torchvision)."""

from pathlib import Path

import pytest
import torch

from glc.losses.efficientnet import EfficientNetFeatures, make_efficientnet_lite0

FILE = "efficientnet-lite0-57934424.pth"


def test_efficientnet_features_are_the_maps_before_each_downsampling() -> None:
    torch.manual_seed(0)
    network = make_efficientnet_lite0().eval()
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    found = EfficientNetFeatures(network=network)(x)
    assert [tuple(level.shape[1:]) for level in found] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        last = network[:19](((x + 1) / 2 - mean[:, None, None]) / deviation[:, None, None])
    torch.testing.assert_close(found[3], last)


def test_weights_are_read_from_the_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = make_efficientnet_lite0()
    torch.save({**network.state_dict(), "_fc.weight": torch.ones(1000, 1280)}, tmp_path / FILE)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        found, wanted = EfficientNetFeatures(tmp_path)(x), EfficientNetFeatures(network=network.eval())(x)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert found[3].std() > 0
    torch.save({"weight": torch.ones(1)}, tmp_path / FILE)
    with pytest.raises(ValueError, match=rf"{FILE}: not the weights of EfficientNet-Lite0"):
        EfficientNetFeatures(tmp_path)
