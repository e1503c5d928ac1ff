"""Feature, structure and texture distances by hand; VGG16 against torchvision's network."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import vgg16

from glc.losses.perceptual import WeightsUnavailable
from glc.losses.vgg import VGGDistances, VGGFeatures, feature_distance, load_vgg, structure_texture

pytestmark = pytest.mark.usefixtures("offline")


class Fake(nn.Module):
    """Features of known values: the image itself, and its channels reversed."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, 2 * x.flip(1)]


def test_feature_distance_compares_directions() -> None:
    x = torch.tensor([[3.0, 4.0], [1.0, 0.0]])[:, :, None, None]  # two images, one position
    y = torch.tensor([[4.0, 3.0], [7.0, 0.0]])[:, :, None, None]
    # |(.6, .8) - (.8, .6)|^2 = .08; equal directions: 0.
    torch.testing.assert_close(feature_distance(x, y), torch.tensor([0.08, 0.0]))


def test_structure_and_texture_by_hand() -> None:
    x = torch.tensor([0.0, 2.0, 0.0, 2.0]).view(1, 1, 2, 2)  # mean 1, variance 1
    y = torch.tensor([2.0, 4.0, 4.0, 2.0]).view(1, 1, 2, 2)  # mean 3, variance 1, covariance 0
    structure, texture = structure_texture(x, y)
    assert structure.item() == pytest.approx(1, abs=1e-5)
    assert texture.item() == pytest.approx(1 - 2 * 1 * 3 / (1 + 9), abs=1e-5)
    opposite, same = structure_texture(x, 2 - x)
    assert opposite.item() == pytest.approx(2, abs=1e-5)
    assert same.item() == pytest.approx(0, abs=1e-5)
    doubled, _ = structure_texture(x, 2 * x)  # covariance 2, variances 1 and 4
    assert doubled.item() == pytest.approx(1 - 4 / 5, abs=1e-5)
    # A second channel of constants is equal: the mean over channels halves.
    constant = torch.ones(1, 1, 2, 2)
    structure, texture = structure_texture(torch.cat([x, constant], 1), torch.cat([y, constant], 1))
    assert structure.item() == pytest.approx(0.5, abs=1e-5)
    assert texture.item() == pytest.approx(0.2, abs=1e-5)


def test_terms_are_means_over_the_maps() -> None:
    x, y = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = VGGDistances(network=Fake())(x, y)
    assert found.keys() == {"vgg", "structure", "texture"}
    # Scale and order of the channels do not matter to `vgg`.
    torch.testing.assert_close(found["vgg"], feature_distance(x, y))
    pairs = [((x + 1) / 2, (y + 1) / 2), (x, y), (2 * x, 2 * y)]
    wanted = torch.stack([structure_texture(a, b)[0] for a, b in pairs]).mean(0)
    torch.testing.assert_close(found["structure"], wanted)
    assert all(
        value.tolist() == pytest.approx([0, 0, 0], abs=1e-5)
        for value in VGGDistances(network=Fake())(x, x).values()
    )


def test_only_the_estimate_gets_a_gradient() -> None:
    x, y = (torch.rand(1, 3, 8, 8).requires_grad_() for _ in range(2))
    loss = VGGDistances(network=VGGFeatures((0.5,) * 3, (0.5,) * 3, widths=((4,), (6, 6))))
    loss(x, y)["structure"].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert not list(loss.parameters())
    assert not loss.state_dict()


class Seen(nn.Module):
    """Records the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        self.images.append(x)
        return [x]


def test_a_window_is_compared_in_training_only() -> None:
    torch.manual_seed(0)
    network = Seen()
    loss = VGGDistances(network=network, crop=0.5)
    rows, columns = torch.meshgrid(torch.arange(80.0), torch.arange(72.0), indexing="ij")
    x = (rows * 100 + columns).expand(2, 3, 80, 72)
    for _ in range(6):
        loss(x, x)
    assert {tuple(image.shape) for image in network.images} == {(2, 3, 40, 36)}
    pairs = list(zip(network.images[::2], network.images[1::2], strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert len({a[0, 0, 0, 0].item() for a, _ in pairs}) > 3
    loss.eval()(x, x)
    assert network.images[-1].shape == x.shape
    loss.train()(x[..., :40, :40], x[..., :40, :40])  # at least 32 pixels
    assert network.images[-1].shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"crop=1\.5: give a number above 0 and at most 1"):
        VGGDistances(network=network, crop=1.5)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Seeded weights of VGG16's first ten convolutions, under torchvision's names."""
    with torch.device("meta"):
        shapes = vgg16(weights=None).features[:23].state_dict()
    generator = torch.Generator().manual_seed(0)
    return {
        f"features.{name}": torch.randn(value.shape, generator=generator)
        * ((2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1)
        for name, value in shapes.items()
    }


def reference(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """relu1_2, relu2_2, relu3_3 and relu4_3 of torchvision's own network."""
    with torch.device("meta"):
        network = vgg16(weights=None).features[:23]
    network.load_state_dict({key.removeprefix("features."): v for key, v in state.items()}, assign=True)
    found = []
    for i, layer in enumerate(network):
        x = layer(x)
        if i in (3, 8, 15, 22):
            found.append(x.clone())  # the ReLUs are in place
    return found


def test_equals_torchvision(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "vgg16-features.pth")
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        wanted = reference(state, (x - mean[:, None, None]) / std[:, None, None])
        found = load_vgg(tmp_path)(2 * x - 1)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_oxford_weights_see_bgr_of_255_minus_the_mean(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({}, tmp_path / "vgg16-features.pth")  # not used: Oxford's file takes precedence
    save_file({key: v.half() for key, v in state.items()}, tmp_path / "vgg16_oxford_bgr_fp16.safetensors")
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    centred = 255 * x.flip(1) - torch.tensor([103.939, 116.779, 123.68])[:, None, None]
    with torch.no_grad():
        wanted = reference({key: v.half().float() for key, v in state.items()}, centred)
        found = load_vgg(tmp_path)(2 * x - 1)
    for a, b in zip(found, wanted, strict=True):  # features have torchvision's magnitude
        torch.testing.assert_close(a * 0.226 * 255, b, rtol=1e-3, atol=1e-2)


def test_bad_files_are_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="vgg16-397923af"):
        load_vgg(tmp_path)
    path = tmp_path / "vgg16_oxford_bgr.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"oxford_bgr\.safetensors: cannot be read as safetensors"):
        load_vgg(tmp_path)
    save_file({key: v for key, v in state.items() if not key.startswith("features.21.")}, path)
    with pytest.raises(ValueError, match=r"features\.21\.weight is missing.*does not hold VGG16"):
        load_vgg(tmp_path)
    with pytest.raises(ValueError, match="precision='half' is unknown"):
        VGGDistances(precision="half", network=Fake())  # type: ignore[arg-type]
