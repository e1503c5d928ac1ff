"""Distances on the features of VGG16 with documented, uniform weights: no calibrated heads are needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from glc.layers.frozen import Frozen
from glc.losses.perceptual import LEAST, find_weights, read_state_dict, torchvision_address

OXFORD = "vgg16_oxford_bgr*.safetensors"
"""Files with Oxford's weights of VGG16, under torchvision's names."""
_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
_OXFORD_SCALE = 0.226 * 255
"""Oxford's input is in 0..255 and only centred; divided by this it has torchvision's range."""


class VGGFeatures(nn.Module):
    """VGG16 (Simonyan and Zisserman, 2015) up to relu4_3.

    ```
    x [B, 3, H, W] --> relu1_2 [64, H, W] --> relu2_2 [128, H/2, W/2] --> relu3_3 [256, H/4, W/4]
                   --> relu4_3 [512, H/8, W/8]
    ```

    Args:
        mean: subtracted from the input in [0, 1], in the order RGB.
        std: of the input, by which it is divided.
        bgr: reverse the channels first, for weights that were trained on BGR.
        widths: channels of the convolutions of each block.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        bgr: bool = False,
        widths: Sequence[Sequence[int]] = _WIDTHS,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.mean: Tensor
        self.std: Tensor
        self.bgr = bgr
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        channels = 3
        for i, block in enumerate(widths):
            layers += [nn.MaxPool2d(2)] * (i > 0)
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of x in [-1, 1]."""
        x = ((x + 1) / 2 - self.mean) / self.std
        x = x.flip(1) if self.bgr else x
        found = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                found.append(x)
        return found


def load_vgg(weights_dir: str | Path | None = None) -> VGGFeatures:
    """Return VGG16 with pretrained weights, float32.

    Oxford's weights are used if `weights_dir` has a file `vgg16_oxford_bgr*.safetensors`; otherwise
    torchvision's, looked up as those of LPIPS. Their channels differ: values of the two are not comparable.

    Raises:
        WeightsUnavailable: neither was found; the message lists the places tried.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: a file does not hold VGG16, or several match.
    """
    own = sorted(Path(weights_dir).expanduser().glob(OXFORD)) if weights_dir is not None else []
    if len(own) > 1:
        raise ValueError(f"weights_dir={str(weights_dir)!r}: {len(own)} files match {OXFORD}; keep one")
    with torch.device("meta"):  # every tensor is replaced below: consumes no random numbers
        features = VGGFeatures((0.0,) * 3, (1.0,) * 3).features
    if own:
        path = own[0]
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: cannot be read as safetensors ({error}); replace it") from error
        network = VGGFeatures(
            (123.68 / 255, 116.779 / 255, 103.939 / 255), (_OXFORD_SCALE / 255,) * 3, bgr=True
        )
    else:
        path = find_weights(torchvision_address("vgg"), weights_dir, "vgg16*.pth", "vgg16_bn*.pth")
        found = read_state_dict(path)
        network = VGGFeatures((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    state: dict[str, Tensor] = {}
    for name, wanted in features.state_dict().items():
        tensor = found.get(f"features.{name}", found.get(name))
        if tensor is None or tensor.shape != wanted.shape:
            got = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise ValueError(
                f"{path}: features.{name} {got}, expected shape {tuple(wanted.shape)}; "
                "the file does not hold VGG16; replace it"
            )
        # Input and biases divided by a number divide all features by it: ReLU and pooling are homogeneous.
        state[name] = tensor.float() / (_OXFORD_SCALE if own and name.endswith("bias") else 1)
    network.features.load_state_dict(state, assign=True)
    return network


def feature_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared distance `[B]` of features `[B, C, h, w]` of unit length at each position.

    It lies in [0, 2] for features that are not negative: 2 - 2 cos of the angle, averaged over positions.
    """
    return (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean((1, 2))


def structure_texture(x: Tensor, y: Tensor, floor: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return 1 - s and 1 - l of DISTS (Ding et al., 2020) for features `[B, C, h, w]`: means over channels.

    ```
    l = (2 mu_x mu_y + c) / (mu_x^2 + mu_y^2 + c)                 texture: means over positions
    s = (2 sigma_xy + c) / (sigma_x^2 + sigma_y^2 + c)            structure: covariance over positions
    ```

    Args:
        floor: c, which makes two constant maps equal.

    Returns:
        The structure term in [0, 2] and the texture term in [0, 2], each `[B]`; 0 for equal features.
    """
    mean_x, mean_y = x.mean((2, 3)), y.mean((2, 3))
    a, b = x - mean_x[..., None, None], y - mean_y[..., None, None]
    var_x, var_y, covariance = (v.mean((2, 3)) for v in (a.square(), b.square(), a * b))
    texture = (2 * mean_x * mean_y + floor) / (mean_x.square() + mean_y.square() + floor)
    structure = (2 * covariance + floor) / (var_x + var_y + floor)
    return 1 - structure.mean(1), 1 - texture.mean(1)


class VGGDistances(nn.Module):
    """The terms `vgg`, `structure` and `texture` on one pass of VGG16 per image.

    ```
    x, y --> VGG16 --> relu1_2, 2_2, 3_3, 4_3 --> vgg: `feature_distance`, mean over the 4 maps
       '-----------------------+-----------------> structure, texture: `structure_texture`, mean over
                                                    the image and the 4 maps
    ```

    All channels and maps have the same weight. `vgg` is LPIPS' distance without its calibrated heads.
    `structure` and `texture` are the two similarities of DISTS (Ding et al., 2020), which however pools by L2
    norms and weights channels by learned alpha and beta: values are not comparable with DISTS.

    The network is `Frozen`. x is the estimate: y's features are computed without gradient.

    Args:
        weights_dir: see `load_vgg`.
        precision: of the convolutions. `float32` computes in float32 also under autocast; `autocast` follows
            the caller. Distances are in float32 in both cases.
        network: another network instead, from images in [-1, 1] to a list of maps.
        crop: in training, compare a random window of this share of the sides, at least `LEAST` pixels, which
            is a new one in each step: 0.5 costs a quarter.

    Raises:
        WeightsUnavailable, FileNotFoundError, ValueError: see `load_vgg`; or `precision` is unknown.
    """

    terms: ClassVar = ("vgg", "structure", "texture")

    def __init__(
        self,
        weights_dir: str | Path | None = None,
        precision: Literal["float32", "autocast"] = "float32",
        network: nn.Module | None = None,
        crop: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < crop <= 1:
            raise ValueError(f"VGGDistances: crop={crop}: give a number above 0 and at most 1")
        if precision not in ("float32", "autocast"):
            raise ValueError(f"VGGDistances: precision={precision!r} is unknown; choose float32 or autocast")
        self.precision = precision
        self.crop = crop
        self.network = Frozen(load_vgg(weights_dir) if network is None else network)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of x `[B, 3, H, W]` in [-1, 1], float32."""
        if self.precision == "autocast":
            return [map.float() for map in self.network(x)]
        with torch.autocast(x.device.type, enabled=False):
            return list(self.network(x.float()))

    def _window(self, side: int) -> slice:
        """Return a random window along a side. Sampled on the CPU: no GPU sync."""
        size = min(side, max(LEAST, round(self.crop * side)))
        start = int(torch.randint(0, side - size + 1, ()))
        return slice(start, start + size)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Compare x with the target y, both `[B, 3, H, W]` in [-1, 1]; each term is `[B]`."""
        if self.training and self.crop < 1:
            rows, columns = (self._window(side) for side in x.shape[-2:])
            x, y = x[..., rows, columns], y[..., rows, columns]
        with torch.no_grad():
            wanted = self.features(y)
        found = self.features(x)
        with torch.autocast(x.device.type, enabled=False):
            distance = [feature_distance(a, b) for a, b in zip(found, wanted, strict=True)]
            images = ((x.float() + 1) / 2, (y.float() + 1) / 2)
            pairs = [images, *zip(found, wanted, strict=True)]
            structure, texture = zip(*(structure_texture(a, b) for a, b in pairs), strict=True)
        means = (torch.stack(values).mean(0) for values in (distance, structure, texture))
        return dict(zip(self.terms, means, strict=True))
