"""Feature networks for metrics that compare sets of images, and their weights."""

import hashlib
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from glc.layers.frozen import Frozen
from glc.losses.perceptual import WeightsUnavailable, find_local, find_weights

_INSTALL = "Fix: pip install 'glc-codec[eval]'."
_CLIP = "clip-vit-l-14-336px"
_DINOV2 = {"vits14": "vit_small", "vitb14": "vit_base", "vitl14": "vit_large"}


class PatchFeatures(nn.Module):
    """Runs a network over patches in batches and caches the last results.

    The cache serves FID and KID that share one object: both ask for the same patches, and the network runs
    once.

    Args:
        network: uint8 [N, 3, size, size] to features [N, D].
        num_features: D; None: found by a forward pass of a black patch.
        batch_size: patches per forward pass.
    """

    num_features: int

    def __init__(self, network: nn.Module, num_features: int | None = None, batch_size: int = 32) -> None:
        super().__init__()
        # Frozen hides it: its device must not determine that of the metrics that share it.
        self.network = Frozen(network)
        self.batch_size = batch_size
        self._last: deque[tuple[Tensor, Tensor]] = deque(maxlen=4)  # x and x_hat, for two patch sizes
        if num_features is None:
            with torch.no_grad():
                num_features = network(torch.zeros(1, 3, 256, 256, dtype=torch.uint8)).shape[-1]
        self.num_features = num_features

    def forward(self, patches: Tensor) -> Tensor:
        """Return features, float32 [N, D], of patches, uint8 [N, 3, size, size]."""
        for known, features in self._last:
            if known.device == patches.device and torch.equal(known, patches):
                return features
        network = self.network.module
        tensor = next(
            network.parameters(), next(network.buffers(), patches)
        )  # a metric may have moved the network
        parts = [self.network(part.to(tensor.device)).float() for part in patches.split(self.batch_size)]
        features = torch.cat(parts).to(patches.device)
        self._last.append((patches, features))
        return features


_shared: WeakValueDictionary[tuple[str, str], PatchFeatures] = WeakValueDictionary()


def share(name: str, path: Path, make: Callable[[], PatchFeatures]) -> PatchFeatures:
    """Return the network of a weights file, shared by all metrics that use it."""
    key = (name, str(path.resolve()))
    features = _shared.get(key)
    if features is None:
        features = _shared[key] = make()
    return features


def inception(weights_dir: str | Path | None = None) -> PatchFeatures:
    """Return the Inception network of FID and KID (D = 2048, torch-fidelity's port of the original weights).

    Patches are resized to 299x299 as in TensorFlow 1, like published results.

    Args:
        weights_dir: folder searched first for `weights-inception-2015-12-05-6726825d.pth` or one
            `weights-inception*.pth`.

    Raises:
        WeightsUnavailable: the package torch-fidelity is not installed, or the weights were not found.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: a weights file has other content than its name says.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        raise WeightsUnavailable(f"FID and KID need the package torch-fidelity. {_INSTALL}") from error
    path = find_weights(URL_INCEPTION_V3, weights_dir, "weights-inception*.pth")

    def make() -> PatchFeatures:
        check_tensors(path)  # the constructor below would unpickle arbitrary objects
        try:
            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
        except RuntimeError as error:
            raise ValueError(f"{path}: not the weights of FID's Inception network; replace it") from error
        network.use_antialias = False  # newer versions of torchmetrics would use anti-aliasing
        return PatchFeatures(network, num_features=2048)

    return share("inception", path, make)


class _First(nn.Module):
    """Unwraps the tuple that networks of torch-fidelity return."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor) -> Tensor:
        return self.network(patches)[0]


def clip(weights_dir: str | Path | None = None) -> PatchFeatures:
    """Return CLIP's image encoder ViT-L/14 at 336 pixels (D = 768), as used by CMMD.

    The file (0.9 GB) is never downloaded; it is searched in `weights_dir`, then in torch hub's cache.

    Raises:
        WeightsUnavailable: the package torch-fidelity is not installed, or the weights were not found.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: a weights file has other content than its name says.
    """
    try:
        from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS, FeatureExtractorCLIP
    except ImportError as error:
        raise WeightsUnavailable(f"CMMD needs the package torch-fidelity. {_INSTALL}") from error
    path = find_local("ViT-L-14-336px.pt", MODEL_URLS[_CLIP], weights_dir)

    def make() -> PatchFeatures:
        _check_hash(path, MODEL_METADATA[_CLIP]["hash"])
        with warnings.catch_warnings():  # torch warns about TorchScript files
            warnings.simplefilter("ignore", FutureWarning)
            network = FeatureExtractorCLIP(_CLIP, ["clip"], feature_extractor_weights_path=str(path))
        return PatchFeatures(_First(network))

    return share("clip", path, make)


class ImageNetNormalised(nn.Module):
    """Applies a network to levels in [0, 255], normalised by ImageNet's mean and deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, levels: Tensor) -> Tensor:
        """Return the network's output for levels `[B, 3, H, W]`."""
        return self.network((levels.float() / 255 - self.mean) / self.deviation)


class _DINOv2(ImageNetNormalised):
    """Resizes to 224x224 first, as in training."""

    def forward(self, levels: Tensor) -> Tensor:
        x = nn.functional.interpolate(levels.float(), (224, 224), mode="bicubic", antialias=True)
        return super().forward(x.clamp(0, 255))


def dinov2(
    weights_dir: str | Path | None = None, size: Literal["vits14", "vitb14", "vitl14"] = "vitl14"
) -> PatchFeatures:
    """Return the class token of DINOv2 without registers (D = 1024 for `vitl14`, as used by FD-DINOv2).

    The authors' file `dinov2_vitl14_pretrain.pth` (1.2 GB) is never downloaded; it is searched in
    `weights_dir`, then in torch hub's cache.

    Raises:
        WeightsUnavailable: the package timm is not installed, or the weights were not found.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: `size` is unknown, or a weights file has other content than its name says.
    """
    if size not in _DINOV2:
        raise ValueError(f"dinov2: size={size!r} is unknown; choose one of {', '.join(_DINOV2)}")
    try:
        import timm
    except ImportError as error:
        raise WeightsUnavailable("FD-DINOv2 needs the package timm. Fix: pip install timm") from error
    name = f"dinov2_{size}"
    path = find_local(
        f"{name}_pretrain.pth",
        f"https://dl.fbaipublicfiles.com/dinov2/{name}/{name}_pretrain.pth",
        weights_dir,
    )

    def make() -> PatchFeatures:
        check_tensors(path)
        model = f"{_DINOV2[size]}_patch14_dinov2.lvd142m"
        try:
            network = timm.create_model(
                model,
                pretrained=True,
                num_classes=0,
                img_size=224,
                pretrained_cfg_overlay={"file": str(path)},
            )
        except RuntimeError as error:
            raise ValueError(f"{path}: not the weights of {model}; replace it") from error
        return PatchFeatures(_DINOv2(network))

    return share(name, path, make)


def _check_hash(path: Path, digits: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digits:
        raise ValueError(f"{path}: corrupt: its SHA-256 is {actual}, expected {digits}; replace it")


def check_tensors(path: Path, mapped: bool = True) -> dict[str, Tensor]:
    """Return the tensors of a file, without unpickling other objects.

    Args:
        mapped: map the file instead of reading it; not for files in torch's format before version 1.6.

    Raises:
        ValueError: it has no state dict.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many types of errors for corrupt files
        raise ValueError(
            f"{path}: not a readable file of tensors ({type(error).__name__}); replace it"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: not a state dict (a dictionary of tensors); replace it")
    return state
