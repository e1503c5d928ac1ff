"""DISTS, with weights located like those of LPIPS."""

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import dists
from torchvision.models import VGG16_Weights, vgg16

from glc.layers.frozen import Frozen
from glc.losses.perceptual import find_weights


class DISTS(nn.Module):
    """Deep image structure and texture similarity (Ding et al., TPAMI 2020) by torchmetrics; 0 is best.

    Computed at full resolution, as in codec comparisons; the authors' example downscales images first.
    The network is `Frozen`.

    Args:
        weights_dir: folder searched first for torchvision's `vgg16-397923af.pth` or one `vgg16*.pth`: a state
            dict of VGG16 or of its features.

    Raises:
        WeightsUnavailable: the weights of VGG16 were not found; the message lists what was tried and the fix.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: a weights file has other content than its name says.
    """

    def __init__(self, weights_dir: str | Path | None = None) -> None:
        super().__init__()
        path = find_weights(VGG16_Weights.IMAGENET1K_V1.url, weights_dir, "vgg16*.pth", "vgg16_bn*.pth")
        self.network = Frozen(_Network(_features(path)))

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Compare x and x_hat, float [B, 3, H, W] in [-1, 1]; returns [B]."""
        # require_grad: otherwise it returns inference tensors, which autograd cannot use.
        return self.network((x + 1) / 2, (x_hat + 1) / 2, require_grad=True).reshape(len(x))


class _Network(dists.DISTSNetwork):
    """torchmetrics' network with given features; its own constructor always downloads them."""

    def __init__(self, features: nn.Sequential) -> None:
        nn.Module.__init__(self)
        pools = {
            4: 64,
            9: 128,
            16: 256,
            23: 512,
        }  # VGG16's max-pooling layers, which DISTS replaces by L2 pooling, and their channels
        layers = [
            dists.L2pooling(channels=pools[number]) if number in pools else layer
            for number, layer in enumerate(features)
        ]
        starts = (0, *pools, 30)
        for stage, (start, end) in enumerate(itertools.pairwise(starts), 1):
            self.add_module(f"stage{stage}", nn.Sequential(*layers[start:end]))
        self.chns = [3, 64, 128, 256, 512, 512]
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, -1, 1, 1))
        calibration = Path(dists.__file__).parent / "dists_models" / "weights.pt"
        for name, values in torch.load(calibration, map_location="cpu", weights_only=True).items():
            self.register_parameter(name, nn.Parameter(values))


def _features(path: Path) -> nn.Sequential:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = {
            name.removeprefix("features."): value for name, value in state.items() if "classifier" not in name
        }
        with torch.device("meta"):  # avoids allocating the classifier, 0.5 GB
            features = vgg16(weights=None).features
        features.load_state_dict(found, assign=True)
    except Exception as error:  # torch raises many types of errors for invalid files
        raise ValueError(f"{path}: not the weights of VGG16 ({type(error).__name__}); replace it") from error
    return features.float()
