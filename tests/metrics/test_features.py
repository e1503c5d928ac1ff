"""Networks of features: batches, memory, and the search for their weights, with stand-ins."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch
import torch_fidelity.feature_extractor_clip as clip_extractor
import torch_fidelity.feature_extractor_inceptionv3 as inception_extractor
from torch import Tensor, nn

from glc.losses.perceptual import WeightsUnavailable
from glc.metrics import FID, KID, features
from glc.metrics.features import PatchFeatures

pytestmark = pytest.mark.usefixtures("offline")


class Counting(nn.Module):
    """Two features, and how many patches it was given at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, patches: Tensor) -> Tensor:
        self.seen.append(len(patches))
        x = patches.double()
        return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1)


def patches(count: int, seed: int = 0, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_patches_go_in_batches_and_the_same_ones_only_once() -> None:
    network = Counting()
    run = PatchFeatures(network, batch_size=4)
    assert run.num_features == 2
    network.seen.clear()
    first, second = patches(10), patches(10, seed=1)
    found = run(first)
    assert network.seen == [4, 4, 2]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Counting()(first).float())
    assert torch.equal(run(first.clone()), found)
    assert not torch.equal(run(second), found)
    assert torch.equal(run(first), found)
    assert network.seen == [4, 4, 2] * 2
    run(patches(2, size=16))
    assert network.seen[6:] == [2]


def test_metrics_that_share_a_network_run_it_once() -> None:
    network = Counting()
    shared = PatchFeatures(network, num_features=2)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    for metric in (FID(8, features=shared), KID(8, features=shared)):
        metric.update(x, -x)
    assert sum(network.seen) == 2 * (16 + 9)


@pytest.fixture
def random_inception(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """A state dict of random weights, made without the published file that the constructor insists on."""
    with monkeypatch.context() as patched:
        patched.setattr(inception_extractor, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        network = inception_extractor.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    return network.state_dict()


def test_inception_is_found_in_a_folder_and_shared(
    random_inception: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "weights-inception-mine.pth"
    torch.save(random_inception, path)
    fid, kid = FID(32, weights_dir=tmp_path), KID(32, weights_dir=tmp_path)
    assert fid.inception is kid.network
    assert kid.network.num_features == 2048
    assert torch.equal(kid.network.network.module.fc.weight, random_inception["fc.weight"])
    # Their own tensors tell where they are, not those of the network, which another metric may have moved.
    assert not list(fid.parameters())
    assert not list(kid.buffers())
    some = patches(1, size=32)
    # As torch-fidelity computes it itself, resizing as TensorFlow 1 did.
    theirs = inception_extractor.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=path
    )
    expected = theirs(some)[0]
    assert expected.std() > 0
    torch.testing.assert_close(kid.network(some), expected)

    del random_inception["fc.weight"]
    other = tmp_path / "other"
    other.mkdir()
    torch.save(random_inception, other / path.name)
    with pytest.raises(ValueError, match=r"weights-inception-mine\.pth: not the weights of FID's Inception"):
        features.inception(other)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_code_in_a_weights_file_is_not_executed(tmp_path: Path) -> None:
    torch.save({"fc.weight": Trap(tmp_path / "sprung")}, tmp_path / "weights-inception-x.pth")
    with pytest.raises(ValueError, match="not a readable file of tensors"):
        features.inception(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_clip_takes_the_published_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ViT-L-14-336px.pt"
    with pytest.raises(WeightsUnavailable, match=r"put https://\S+/ViT-L-14-336px\.pt there"):
        features.clip(tmp_path)

    class Archive(nn.Module):
        """The published file is a program of torch's with all of CLIP in it; this one is tiny."""

        def __init__(self) -> None:
            super().__init__()
            self.visual = clip_extractor.CLIPVisual(16, 28, 2, 64, 14).visual
            self.text_projection = nn.Parameter(torch.zeros(8, 16))

        def forward(self, x: Tensor) -> Tensor:
            return self.visual(x) @ self.text_projection.T

    archive = Archive().eval()
    torch.jit.trace(archive, torch.rand(1, 3, 28, 28)).save(str(path))
    with pytest.raises(ValueError, match=r"ViT-L-14-336px\.pt: corrupt: its SHA-256 is"):
        features.clip(tmp_path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(clip_extractor.MODEL_METADATA["clip-vit-l-14-336px"], "hash", digits)
    network = features.clip(tmp_path)
    some = patches(2, size=28)  # the network's own size: nothing to resize
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    expected = archive.visual((some / 255 - mean) / deviation)
    assert network.num_features == 16
    torch.testing.assert_close(network(some), expected, rtol=1e-2, atol=1e-2)  # stored as half precision


def test_dinov2_names_missing_package_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(WeightsUnavailable, match="Fix: pip install timm"):
        features.dinov2(tmp_path)
    with pytest.raises(ValueError, match="size='vitl16' is unknown; choose one of vits14, vitb14, vitl14"):
        features.dinov2(tmp_path, size="vitl16")
    monkeypatch.setitem(sys.modules, "timm", torch)  # any module will do: it is not come to
    with pytest.raises(WeightsUnavailable, match=r"dinov2_vitl14_pretrain\.pth"):
        features.dinov2(tmp_path)


@pytest.mark.parametrize("make", [features.inception, features.clip])
def test_a_missing_weights_folder_is_named(make: type, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
        make(tmp_path / "nowhere")
