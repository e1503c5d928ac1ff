"""Networks that turn patches into features, for metrics that compare sets of images, and their weights."""

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
from glc.losses.perceptual import WeightsUnavailable, find_weights

_INSTALL = "Fix: pip install 'glc-codec[eval]', which brings it."
_CLIP = "clip-vit-l-14-336px"
_DINOV2 = {"vits14": "vit_small", "vitb14": "vit_base", "vitl14": "vit_large"}


class PatchFeatures(nn.Module):
    """Runs a network over patches, a limited number at a time.

    What it computed last is remembered: FID and KID that share one object ask for the same patches in turn,
    and the network runs once.

    Args:
        network: uint8 [N, 3, size, size] to features [N, D].
        num_features: D; by default what the network returns for a black patch.
        batch_size: patches that the network sees at a time.
    """

    num_features: int

    def __init__(self, network: nn.Module, num_features: int | None = None, batch_size: int = 32) -> None:
        super().__init__()
        self.network = Frozen(
            network
        )  # out of sight: where it lies says nothing of the metrics that share it
        self.batch_size = batch_size
        self._last: deque[tuple[Tensor, Tensor]] = deque(maxlen=4)  # x and x_hat, of two sizes of patches
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
        tensor = next(network.parameters(), next(network.buffers(), patches))  # a metric may have moved it
        parts = [self.network(part.to(tensor.device)).float() for part in patches.split(self.batch_size)]
        features = torch.cat(parts).to(patches.device)
        self._last.append((patches, features))
        return features


_shared: WeakValueDictionary[tuple[str, str], PatchFeatures] = WeakValueDictionary()


def _share(name: str, path: Path, make: Callable[[], PatchFeatures]) -> PatchFeatures:
    """One network per file of weights, for as long as some metric uses it."""
    key = (name, str(path.resolve()))
    features = _shared.get(key)
    if features is None:
        features = _shared[key] = make()
    return features


def inception(weights_dir: str | Path | None = None) -> PatchFeatures:
    """Return the Inception network of FID and KID (D = 2048, torch-fidelity's port of the original weights).

    Patches are resized to 299x299 as TensorFlow 1 did, which published figures rest on.

    Args:
        weights_dir: a folder to look in first, for `weights-inception-2015-12-05-6726825d.pth` or one
            `weights-inception*.pth`.

    Raises:
        WeightsUnavailable: the package torch-fidelity is not installed, or the weights cannot be had.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: a weights file is not what its name says.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        raise WeightsUnavailable(f"FID and KID need the package torch-fidelity. {_INSTALL}") from error
    path = find_weights(URL_INCEPTION_V3, weights_dir, "weights-inception*.pth")

    def make() -> PatchFeatures:
        _check_tensors(path)  # the constructor below would unpickle anything
        try:
            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
        except RuntimeError as error:
            raise ValueError(f"{path}: not the weights of FID's Inception network; replace it") from error
        network.use_antialias = False  # what newer versions of torchmetrics would do instead
        return PatchFeatures(network, num_features=2048)

    return _share("inception", path, make)


class _First(nn.Module):
    """A network of torch-fidelity returns its features in a tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor) -> Tensor:
        return self.network(patches)[0]


def clip(weights_dir: str | Path | None = None) -> PatchFeatures:
    """Return CLIP's image encoder ViT-L/14 at 336 pixels (D = 768), the one of CMMD.

    Its 0.9 GB are not downloaded unasked: the file is looked for in `weights_dir`, then in torch hub's cache.

    Raises:
        WeightsUnavailable: the package torch-fidelity is not installed, or the weights are not at hand.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: a weights file is not what its name says.
    """
    try:
        from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS, FeatureExtractorCLIP
    except ImportError as error:
        raise WeightsUnavailable(f"CMMD needs the package torch-fidelity. {_INSTALL}") from error
    path = _at_hand("ViT-L-14-336px.pt", MODEL_URLS[_CLIP], weights_dir)

    def make() -> PatchFeatures:
        _check_hash(path, MODEL_METADATA[_CLIP]["hash"])
        with warnings.catch_warnings():  # the file is of a kind that torch no longer recommends
            warnings.simplefilter("ignore", FutureWarning)
            network = FeatureExtractorCLIP(_CLIP, ["clip"], feature_extractor_weights_path=str(path))
        return PatchFeatures(_First(network))

    return _share("clip", path, make)


class _DINOv2(nn.Module):
    """Resizes to 224x224 and normalises as the network was trained."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, patches: Tensor) -> Tensor:
        x = nn.functional.interpolate(patches.float(), (224, 224), mode="bicubic", antialias=True)
        return self.network((x.clamp(0, 255) / 255 - self.mean) / self.deviation)


def dinov2(
    weights_dir: str | Path | None = None, size: Literal["vits14", "vitb14", "vitl14"] = "vitl14"
) -> PatchFeatures:
    """Return DINOv2 without registers, its class token (D = 1024 for `vitl14`, the one of FD-DINOv2).

    Its weights are not downloaded unasked: the authors' file `dinov2_vitl14_pretrain.pth` (1.2 GB) is looked
    for in `weights_dir`, then in torch hub's cache.

    Raises:
        WeightsUnavailable: the package timm is not installed, or the weights are not at hand.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: `size` is unknown, or a weights file is not what its name says.
    """
    if size not in _DINOV2:
        raise ValueError(f"dinov2: size={size!r} is unknown; choose one of {', '.join(_DINOV2)}")
    try:
        import timm
    except ImportError as error:
        raise WeightsUnavailable("FD-DINOv2 needs the package timm. Fix: pip install timm") from error
    name = f"dinov2_{size}"
    path = _at_hand(
        f"{name}_pretrain.pth",
        f"https://dl.fbaipublicfiles.com/dinov2/{name}/{name}_pretrain.pth",
        weights_dir,
    )

    def make() -> PatchFeatures:
        _check_tensors(path)
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

    return _share(name, path, make)


def _at_hand(name: str, url: str, weights_dir: str | Path | None) -> Path:
    """A file of a name without a hash, which is never downloaded."""
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if weights_dir is not None:
        folders.insert(0, Path(weights_dir).expanduser())
        if not folders[0].is_dir():
            raise FileNotFoundError(
                f"weights_dir={str(folders[0])!r} is not a folder; correct it or leave it out"
            )
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise WeightsUnavailable(
        f"no weights {name}, and files of this size are not downloaded unasked. Tried: "
        f"{', '.join(map(str, folders))}. Fix: put {url} there, or name a folder that holds it (weights_dir)."
    )


def _check_hash(path: Path, digits: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digits:
        raise ValueError(f"{path}: its SHA-256 is {actual}, not {digits}; the file is damaged, replace it")


def _check_tensors(path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a different type for each way in which a file can be damaged
        raise ValueError(
            f"{path}: cannot be read as a file of tensors ({type(error).__name__}); replace it"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds no state dict (a dictionary of tensors); replace it")
