"""LPIPS and the look-up of its weights, with stand-in weights (the published ones are not in the project)."""

import copy
import hashlib
import os
import time
import urllib.error
import warnings
from pathlib import Path

import lpips
import pytest
import torch
from torch import Tensor, nn

from glc.losses import perceptual
from glc.losses.perceptual import LEAST, LPIPS, RandomAugmentation, WeightsUnavailable, find_weights
from glc.losses.style import StyleLoss

FILES = {"vgg": "vgg16-features.pth", "alex": "alexnet_features.pth", "squeeze": "squeezenet1_1_features.pth"}


pytestmark = pytest.mark.usefixtures("offline")


def reference(net: str, seed: int = 0) -> lpips.LPIPS:
    """The package's network with seeded weights; VGG first on the meta device (its classifier is huge)."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net=net, pnet_rand=True, pretrained=False, verbose=False)
    network = network.to_empty(device="cpu")
    network.scaling_layer = lpips.ScalingLayer()
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    network.load_state_dict(torch.load(heads, map_location="cpu", weights_only=True), strict=False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.net.parameters():
        scale = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.data.normal_(0, scale, generator=generator)
    return network.eval()


def save_features(network: lpips.LPIPS, path: Path, prefix: str = "features.") -> Path:
    """Write the backbone's weights under torchvision's names."""
    state = network.net.state_dict()
    torch.save({prefix + name.partition(".")[2]: value for name, value in state.items()}, path)
    return path


@pytest.fixture
def squeeze_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_features(reference("squeeze"), folder / FILES["squeeze"])
    return folder


def images(seed: int = 1, size: int = 64) -> tuple[Tensor, Tensor]:
    x, noise = torch.rand(2, 2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x, (x + 0.3 * noise).clamp(-1, 1)


@pytest.mark.parametrize(
    ("net", "prefix"),
    [("vgg", "features."), ("alex", "features."), ("squeeze", "features."), ("squeeze", "")],
)
def test_equals_the_lpips_package(net: str, prefix: str, tmp_path: Path) -> None:
    expected = reference(net)
    save_features(expected, tmp_path / FILES[net], prefix)  # of the whole network, or its features alone
    x, y = images()
    distance = LPIPS(net, weights_dir=tmp_path)(x, y)
    assert distance.shape == (2,)
    assert distance.min() > 1e-3
    torch.testing.assert_close(distance, expected(x, y).flatten(), rtol=0, atol=1e-5)


def test_construction_consumes_no_random_numbers(squeeze_dir: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    LPIPS("squeeze", squeeze_dir)
    assert torch.equal(torch.rand(3), expected)


def test_training_changes_the_image_and_not_the_network(squeeze_dir: Path) -> None:
    loss = LPIPS("squeeze", squeeze_dir)
    before = copy.deepcopy(loss.network.module.state_dict())
    x, start = images()
    y = nn.Parameter(start)
    parent = nn.ModuleDict({"loss": loss}).requires_grad_(True).train()
    assert not parent.state_dict()
    optimizer = torch.optim.Adam([y, *parent.parameters()], lr=0.02)
    distances = []
    for _ in range(8):
        value = loss(y, x).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        distances.append(value.item())
    assert distances[-1] < 0.8 * distances[0]
    network = loss.network.module
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_precision_under_autocast(squeeze_dir: Path) -> None:
    exact, fast = LPIPS("squeeze", squeeze_dir), LPIPS("squeeze", squeeze_dir, precision="autocast")
    x, y = images()
    expected = exact(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(exact(x, y), expected)
        rounded = fast(x, y)
    assert not torch.equal(rounded.float(), expected)
    torch.testing.assert_close(rounded.float(), expected, rtol=0.1, atol=1e-3)


# Look-up of weights -------------------------------------------------------------------------------


def published(folder: Path, content: bytes, digest: str | None = None) -> str:
    """Write a file with its hash in its name, as torchvision's are; returns its address."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"net-{(digest or hashlib.sha256(content).hexdigest())[:8]}.pth"
    (folder / name).write_bytes(content)
    return f"https://weights.invalid/models/{name}"


def test_folder_is_searched_before_the_cache(offline: Path, tmp_path: Path) -> None:
    url = published(offline, b"weights")
    name, mine = url.rsplit("/", 1)[-1], tmp_path / "mine"
    mine.mkdir()
    assert find_weights(url) == find_weights(url, mine, "net*.pth") == offline / name
    (mine / "net_own.pth").touch()
    assert find_weights(url, mine, "net*.pth") == mine / "net_own.pth"
    published(mine, b"weights")
    assert find_weights(url, mine, "net*.pth") == mine / name


@pytest.mark.parametrize("place", ["folder", "cache"])
def test_file_with_a_wrong_hash_is_refused(place: str, offline: Path, tmp_path: Path) -> None:
    folder = offline if place == "cache" else tmp_path / "mine"
    url = published(folder, b"damaged", digest="0123456789")
    with pytest.raises(ValueError, match=r"net-01234567\.pth: its SHA-256 starts with .*delete it"):
        find_weights(url, None if place == "cache" else folder)


def test_other_networks_and_several_files_of_one_are_refused(tmp_path: Path) -> None:
    for name in ("vgg16_bn-6c64b313.pth", "alexnet_a.pth", "alexnet_b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsUnavailable, match=r"no vgg16\*\.pth"):
        LPIPS("vgg", tmp_path)
    with pytest.raises(ValueError, match="2 files match"):
        LPIPS("alex", tmp_path)


def test_unavailable_weights_message_names_places_and_fix(offline: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable) as caught:
        LPIPS("vgg", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path), str(offline), "vgg16-397923af.pth", "GLC_OFFLINE", "Fix:"):
        assert part in message


def test_no_network_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLC_OFFLINE", "0")
    monkeypatch.setattr(perceptual, "REACH_SECONDS", 0.2)

    def answer(seconds: float, message: str) -> None:
        def open_address(*args: object, **kwargs: object) -> None:
            time.sleep(seconds)
            raise urllib.error.URLError(message)

        monkeypatch.setattr("urllib.request.urlopen", open_address)

    answer(2, "too late")
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable, match="no answer within"):
        find_weights("https://weights.invalid/net-01234567.pth")
    assert time.monotonic() - start < 1.5
    answer(0, "name not known")
    with pytest.raises(WeightsUnavailable, match=r"not reachable: .*name not known"):
        find_weights("https://weights.invalid/net-01234567.pth")


def test_download_is_verified_and_cached(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLC_OFFLINE")
    good = published(tmp_path, b"weights").rsplit("/", 1)[-1]
    bad = published(tmp_path, b"damaged", digest="0123456789").rsplit("/", 1)[-1]
    assert find_weights(f"{tmp_path.as_uri()}/{good}") == offline / good
    assert (offline / good).read_bytes() == b"weights"
    with pytest.raises(WeightsUnavailable, match="download failed: invalid hash value"):
        find_weights(f"{tmp_path.as_uri()}/{bad}")
    assert os.listdir(offline) == [good]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"not a file of torch", "cannot be read as a file of tensors"),
        ([1, 2, 3], "not a state dict"),
        ({}, r"features\.0\.weight is missing"),
        ({"features.0.weight": torch.zeros(64, 3, 5, 5)}, r"has shape \(64, 3, 5, 5\), expected shape"),
    ],
)
def test_file_of_another_network_is_named(content: object, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / FILES["squeeze"]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"{path.name}: .*{complaint}"):
        LPIPS("squeeze", tmp_path)


def test_invalid_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="net='vgg19' is unknown; choose one of vgg, alex, squeeze"):
        LPIPS("vgg19")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision='half'"):
        LPIPS("alex", tmp_path, precision="half")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="absent' is not a folder"):
        LPIPS("alex", tmp_path / "absent")


class Difference(nn.Module):
    """Records its first input."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen = x.detach()
        return (x - y).abs().mean((1, 2, 3))


def test_both_images_get_the_same_augmentation() -> None:
    augmented = RandomAugmentation(Difference())
    x = torch.rand(2, 3, 64, 64)
    for _ in range(20):
        assert augmented(x, x.clone()).eq(0).all()


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


def test_evaluation_compares_unchanged_images() -> None:
    distance = Difference()
    augmented = RandomAugmentation(distance).eval()
    x = torch.rand(1, 3, 40, 56)
    augmented(x, x)
    assert distance.seen.equal(x)


def test_gradient_reaches_the_uncropped_pixels() -> None:
    augmented = RandomAugmentation(Difference())
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    augmented(x, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert x.grad is not None
    assert x.grad[..., 8:, 8:].ne(0).all()


def test_style_loss_refuses_augmentation() -> None:
    with pytest.raises(ValueError, match=r"perceptual\.augment=false"):
        StyleLoss(RandomAugmentation(Difference()))
