"""LPIPS as a loss and as a metric, the look-up of its weights, and random augmentations of its input.

The computation and the calibrated heads come from the `lpips` package. The backbone is looked up here: in the
user's folder, in torch hub's cache, then on the network, with its hash checked.
"""

import hashlib
import os
import threading
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.layers.frozen import Frozen

REACH_SECONDS = 4.0  # timeout of the first answer before a server counts as unreachable


Net = Literal["vgg", "alex", "squeeze"]
"""Backbones of LPIPS."""


class WeightsUnavailable(RuntimeError):
    """Published weights were found neither in a folder, nor in torch hub's cache, nor on the network."""


class _Backbone(NamedTuple):
    weights: str  # torchvision's enumeration of weights, which has the URL
    pattern: str  # further file names accepted in the user's folder
    not_pattern: str | None  # names that match `pattern` but hold another network


_BACKBONES = {
    "vgg": _Backbone("VGG16_Weights", "vgg16*.pth", "vgg16_bn*.pth"),
    "alex": _Backbone("AlexNet_Weights", "alexnet*.pth", None),
    "squeeze": _Backbone("SqueezeNet1_1_Weights", "squeezenet1_1*.pth", None),
}


LENGTH_EPS = 1e-10
"""Added to the lengths of feature vectors, as in the `lpips` package."""


class LPIPS(nn.Module):
    """Learned perceptual distance between images, version 0.1 (Zhang et al., CVPR 2018).

    The paper trains with VGG [4.1] and evaluates with AlexNet [5].

    ```
    x, y --> backbone --> 5 (7 for squeeze) feature maps, unit length per position
                              |--> squared difference --> 1x1 head --> mean over positions --> sum over maps
    ```

    The network is `Frozen`: parameters fixed, evaluation mode even after `.train()`, invisible to
    optimizers, EMA and checkpoints; its weights are float32 and follow the parent's device.

    Args:
        net: the backbone, `vgg`, `alex` or `squeeze`.
        weights_dir: a folder to look in first. It may hold torchvision's file (`vgg16-397923af.pth`) or one
            `vgg16*.pth`, `alexnet*.pth`, `squeezenet1_1*.pth`: a state dict of the network or of its
            features.
        precision: `float32` computes in float32 also under autocast; `autocast` follows the caller.

    Raises:
        WeightsUnavailable: the backbone's weights were not found; the message lists the places tried.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: `net` or `precision` is unknown, or a weights file does not match its name.
    """

    kernel: Callable[[Tensor, Tensor, Tensor, float], Tensor | None] | None = None
    """Computes the distances `[B, h, w]` of two feature maps faster: of the maps, the channels' weights and
    `LENGTH_EPS`; differentiable in the first map. It returns None for maps that it does not accept."""

    def __init__(
        self,
        net: Net = "vgg",
        weights_dir: str | Path | None = None,
        precision: Literal["float32", "autocast"] = "float32",
    ) -> None:
        super().__init__()
        if net not in _BACKBONES:
            raise ValueError(f"LPIPS: net={net!r} is unknown; choose one of {', '.join(_BACKBONES)}")
        if precision not in ("float32", "autocast"):
            raise ValueError(f"LPIPS: precision={precision!r} is unknown; choose float32 or autocast")
        self.precision = precision
        self.network = Frozen(_build(net, weights_dir))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances `[B]` (0: equal) between x and y, float `[B, 3, H, W]` in [-1, 1]."""
        if self.precision == "autocast":
            return self._distances(x, y)
        with torch.autocast(x.device.type, enabled=False):
            return self._distances(x.float(), y.float())

    def _distances(self, x: Tensor, y: Tensor) -> Tensor:
        if self.kernel is None or (x.requires_grad and y.requires_grad):
            return self.network(x, y).flatten()
        if y.requires_grad:  # symmetric, and the kernel has the gradient of its first argument
            x, y = y, x
        network: Any = self.network.module
        images = [image.contiguous(memory_format=torch.channels_last) for image in (x, y)]
        maps = [network.net(network.scaling_layer(image)) for image in images]
        total = x.new_zeros(len(x), dtype=torch.float32)
        for a, b, head in zip(*maps, network.lins, strict=True):
            distances = self.kernel(a, b, head.model[-1].weight.flatten(), LENGTH_EPS)
            if distances is None:
                distances = head((F.normalize(a, dim=1) - F.normalize(b, dim=1)) ** 2)
            total = total + distances.flatten(1).mean(1)
        return total

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the backbone's feature maps `[B, C_i, h_i, w_i]` of x `[B, 3, H, W]` in [-1, 1], float32."""
        network: Any = self.network.module
        with torch.autocast(x.device.type, enabled=False):
            return list(network.net(network.scaling_layer(x.float())))


def _build(net: str, weights_dir: str | Path | None) -> nn.Module:
    import lpips  # slow to import, and an optional dependency

    path = find_weights(torchvision_address(net), weights_dir, *_BACKBONES[net][1:])
    # On the meta device, because every tensor is replaced below: consumes no random numbers and never
    # allocates VGG's classifier (0.5 GB).
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        network = lpips.LPIPS(pretrained=False, pnet_rand=True, net=net, verbose=False)
    network.scaling_layer = lpips.ScalingLayer()
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    network.load_state_dict(read_state_dict(heads), strict=False, assign=True)
    network.net.load_state_dict(_features_for(network.net, path), assign=True)
    return network.float()


def _features_for(slices: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a torchvision file under the names of the `lpips` package, which has slices."""
    found = read_state_dict(path)
    renamed: dict[str, Tensor] = {}
    for name, wanted in slices.state_dict().items():
        layer = name.partition(".")[2]  # "slice2.3.weight" is layer 3 of the features
        tensor = found.get(f"features.{layer}", found.get(layer))
        if tensor is None or tensor.shape != wanted.shape:
            got = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise ValueError(
                f"{path}: features.{layer} {got}, expected shape {tuple(wanted.shape)}; "
                "the file holds another network than its name says; replace it"
            )
        renamed[name] = tensor
    return renamed


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of torch; raises ValueError if it is not a dictionary of tensors."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of corruption
        raise ValueError(
            f"{path}: cannot be read as a file of tensors ({type(error).__name__}); replace it"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: not a state dict (a dictionary of tensors); replace it")
    return state


def find_weights(
    url: str,
    weights_dir: str | Path | None = None,
    pattern: str | None = None,
    not_pattern: str | None = None,
) -> Path:
    """Return the local file with the weights published at `url`, downloaded to torch hub's cache if needed.

    Looked up in `weights_dir` under its own name, then as the one file that matches `pattern` and not
    `not_pattern`; in `$TORCH_HOME/hub/checkpoints` under its own name; on the network unless `GLC_OFFLINE=1`.

    Raises:
        WeightsUnavailable: nothing was found; the message lists what was tried and the fix.
        FileNotFoundError: `weights_dir` is given and is not a folder.
        ValueError: a file has the published name but not its hash, or several files match `pattern`.
    """
    name = url.rsplit("/", 1)[-1]
    tried: list[str] = []
    if weights_dir is not None:
        folder = Path(weights_dir).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"weights_dir={str(folder)!r} is not a folder; correct or omit it")
        if (folder / name).is_file():
            return _checked(folder / name)
        matches = sorted(folder.glob(pattern)) if pattern else []
        matches = [path for path in matches if not_pattern is None or not path.match(not_pattern)]
        if len(matches) > 1:
            raise ValueError(f"weights_dir={str(folder)!r}: {len(matches)} files match {pattern}; keep one")
        if matches:
            return matches[0]
        tried.append(f"{folder} (no {name}" + (f", no {pattern})" if pattern else ")"))
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if cached.is_file():
        return _checked(cached)
    tried.append(f"{cached} (no such file)")
    failure = _download(url, cached)
    if failure is None:
        return cached
    tried.append(f"{url} ({failure})")
    raise WeightsUnavailable(
        f"no weights for {name}. Tried: {'; '.join(tried)}. "
        f"Fix: put {name} into {cached.parent}, or set weights_dir to a folder that holds it, or go online."
    )


def find_local(name: str, url: str, weights_dir: str | Path | None) -> Path:
    """Return the path of a weights file that is never downloaded: in `weights_dir` or torch hub's cache.

    Raises:
        WeightsUnavailable: it is in neither.
        FileNotFoundError: `weights_dir` is given and is not a folder.
    """
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if weights_dir is not None:
        folders.insert(0, Path(weights_dir).expanduser())
        if not folders[0].is_dir():
            raise FileNotFoundError(f"weights_dir={str(folders[0])!r} is not a folder; correct or omit it")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise WeightsUnavailable(
        f"weights {name} not found; files of this size are not downloaded automatically. Tried: "
        f"{', '.join(map(str, folders))}. Fix: put {url} there, or set weights_dir to its folder."
    )


def torchvision_address(net: Net | str) -> str:
    """Return the URL of torchvision's weights of a backbone."""
    from torchvision import models

    return getattr(models, _BACKBONES[net].weights).IMAGENET1K_V1.url


def _checked(path: Path) -> Path:
    """Return the path if its hash starts with the digits at the end of its name (`vgg16-397923af.pth`)."""
    digits = path.stem.rpartition("-")[2]
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(digits):
        raise ValueError(
            f"{path}: its SHA-256 starts with {actual[: len(digits)]}, its name says {digits}; "
            "the file is corrupt or another one; delete it"
        )
    return path


def _download(url: str, destination: Path) -> str | None:
    """Download `url`, whose name ends with its hash; return None, or the reason of the failure."""
    if os.environ.get("GLC_OFFLINE", "0") not in ("", "0"):
        return "not tried: GLC_OFFLINE is set"
    unreachable = _unreachable(url)
    if unreachable is not None:
        return unreachable
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Writes to a temporary file, checks the hash, then renames: safe when several ranks download at once.
        torch.hub.download_url_to_file(url, str(destination), hash_prefix=destination.stem.rpartition("-")[2])
    except (OSError, RuntimeError) as error:
        return f"download failed: {error}"
    return None


def _unreachable(url: str) -> str | None:
    """Return None if the address answers within `REACH_SECONDS`, else the reason.

    In a thread, because DNS look-up ignores the connection's timeout.
    """
    reason = [f"no answer within {REACH_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS).close()
            reason.clear()
        except OSError as error:
            reason[0] = f"not reachable: {error}"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return reason[0] if reason else None


LEAST = 32
"""Smallest side after augmentation, in pixels: AlexNet needs at least 31."""


class RandomAugmentation(nn.Module):
    """Apply the same random augmentation to both images of a perceptual distance during training.

    A fixed network has blind spots that depend on the grid of its strides and on its scale, and a decoder
    learns artefacts that lower this distance and no other. Augmentations that change at each step prevent
    this (the idea of E-LPIPS, Kettunen et al. 2019, with fewer kinds of augmentation). In evaluation mode the
    images are compared unchanged.

    Args:
        distance: maps two batches `[B, 3, H, W]` to distances `[B]`.
        shift: crop 0 to `shift - 1` rows at the top and columns at the left.
        smaller: probability of downscaling, 0 to 1.
        min_scale: smallest scale when downscaling; the largest is halfway between it and 1.
        generator: random numbers, on the CPU; None for torch's default generator.
    """

    def __init__(
        self,
        distance: nn.Module,
        shift: int = 8,
        smaller: float = 0.4,
        min_scale: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.distance = distance
        self.shift = shift
        self.smaller = smaller
        self.min_scale = min_scale
        self.generator = generator

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances `[B]` between x and y `[B, 3, H, W]` in [-1, 1].

        Cropping and downscaling leave at least `LEAST` pixels per side, or all of the side if it is shorter.
        """
        return self.distance(*self.augment(x, y)) if self.training else self.distance(x, y)

    def augment(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Apply one random augmentation to all images. Its parameters are sampled on the CPU: no GPU sync."""
        top, left = torch.randint(0, self.shift, (2,), generator=self.generator).tolist()
        flip_rows, flip_columns, transpose, downscale = (
            torch.rand(4, generator=self.generator) < torch.tensor([0.5, 0.5, 0.5, self.smaller])
        ).tolist()
        scale = self.min_scale + (1 - self.min_scale) / 2 * torch.rand((), generator=self.generator).item()
        height, width = images[0].shape[-2:]
        top, left = min(top, max(0, height - LEAST)), min(left, max(0, width - LEAST))
        # Half a row more, since interpolate rounds sides down.
        scale = min(1.0, max(scale, (LEAST + 0.5) / min(height - top, width - left)))
        flipped = [-2] * flip_rows + [-1] * flip_columns
        augmented = []
        for image in images:
            out = image[..., top:, left:].flip(flipped)
            if transpose:
                out = out.transpose(-1, -2)
            if downscale:
                out = F.interpolate(out, scale_factor=scale, mode="bilinear", antialias=True)
            augmented.append(out)
        return tuple(augmented)
