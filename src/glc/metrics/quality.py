"""Quality and rate of reconstructions, shared by validation and evaluation.

A score is a module that maps `x, x_hat` to one value per image, such as `glc.losses.perceptual.LPIPS`. A set
metric, such as `glc.metrics.FID`, is a `torchmetrics.Metric` with `update(x, x_hat)` and scalar `compute()`,
which raises `NotMeasurable` if it is not defined for the set. Adding either takes one entry in a file of
`conf/metrics`.
"""

import copy
import itertools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import (
    dists,
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
)
from torchvision.models import VGG16_Weights, vgg16

from glc.data.images import from_uint8, to_uint8
from glc.layers.frozen import Frozen
from glc.losses.perceptual import WeightsUnavailable, find_weights

BPP = "bpp"


class NotMeasurable(ValueError):
    """A metric is not defined for these images; the message gives the reason."""


class PSNR(nn.Module):
    """Peak signal-to-noise ratio in dB, computed per image (not from the error pooled over a set).

    Higher is better; infinite for equal images.
    """

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Compare x and x_hat, float [B, 3, H, W] in [-1, 1]; returns [B]."""
        return peak_signal_noise_ratio(x_hat, x, data_range=2.0, dim=(1, 2, 3), reduction="none")


class MSSSIM(nn.Module):
    """Multi-scale structural similarity (Wang et al., 2003) by torchmetrics, in [0, 1]; higher is better.

    Five scales with the usual exponents. Similarities are averaged over the channels before the product over
    scales; pytorch-msssim differs in the fourth digit.
    """

    MIN_SIDE = 176
    """Its window of 11 pixels must fit at the fifth scale, 1/16."""

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Compare x and x_hat, float [B, 3, H, W] in [-1, 1]; returns [B].

        Raises:
            NotMeasurable: a side is shorter than `MIN_SIDE`.
        """
        height, width = x.shape[-2:]
        if min(height, width) < self.MIN_SIDE:
            raise NotMeasurable(
                f"MS-SSIM needs sides of at least {self.MIN_SIDE} pixels, got images of {width}x{height}"
            )
        # Its constants assume the range [0, 1].
        return multiscale_structural_similarity_index_measure(
            (x_hat + 1) / 2, (x + 1) / 2, data_range=1.0, reduction="none"
        )


class QualityMetrics(nn.Module):
    """Measures images and averages over all images of all processes.

    ```
    x, x_hat, bits --update--> {name: [B]}   per image
                   --compute-> {name: []}    mean over images (for set metrics: the value)
    ```

    Lightning: call `update` in `validation_step`; in `on_validation_epoch_end` log what `compute`
    returns, on every rank and without `sync_dist`, and call `reset`. Networks inside the metrics are
    `Frozen`: no checkpoint or optimizer of a parent module holds them.

    Args:
        metrics: name to score, set metric, or callable without arguments that makes one (`_partial_: true` in
            Hydra); None is omitted. A callable that raises `WeightsUnavailable` is omitted too, with the
            reason in `unavailable`.
        eight_bit: round x_hat to 256 levels per channel, as in a saved image. Values outside [-1, 1] are
            clamped in either case.
        weights_dir: folder with the weights of all metrics, checked here before any image is measured.

    Attributes:
        unavailable: name to reason, for each metric without a value: its weights are missing or, since the
            last `compute`, it is not defined for the images.

    Raises:
        ValueError: a metric is named `bpp`, which is reserved for the rate.
        FileNotFoundError: `weights_dir` is given and is not a folder.
    """

    unavailable: dict[str, str]

    def __init__(
        self,
        metrics: Mapping[str, nn.Module | Callable[[], nn.Module] | None],
        eight_bit: bool = True,
        weights_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        if weights_dir is not None and not Path(weights_dir).expanduser().is_dir():
            raise FileNotFoundError(
                f"metrics.weights_dir={str(weights_dir)!r} is not a folder; correct or omit it"
            )
        if BPP in metrics:
            raise ValueError(f"metrics.{BPP}: reserved for bits per pixel; choose another name")
        self.eight_bit = eight_bit
        self._not_made: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._scores = nn.ModuleDict()
        self._set_metrics = nn.ModuleDict()
        for name, entry in metrics.items():
            if entry is None:
                continue
            try:
                metric = entry if isinstance(entry, nn.Module) else entry()
            except WeightsUnavailable as error:
                self._not_made[name] = str(error).replace("set weights_dir to", "set metrics.weights_dir= to")
                continue
            (self._set_metrics if isinstance(metric, Metric) else self._scores)[name] = Frozen(metric)
        self._tallies = nn.ModuleDict({name: _Tally() for name in (BPP, *self._scores)})
        self.unavailable = dict(self._not_made)

    @property
    def names(self) -> list[str]:
        """Names of the per-image scores, without `bpp`."""
        return list(self._scores)

    @torch.no_grad()
    def measure(self, x: Tensor, x_hat: Tensor, bits: Tensor | None = None) -> dict[str, Tensor]:
        """Score each image without adding it to the means.

        Args:
            x: originals, float [B, 3, H, W] in [-1, 1], without padding.
            x_hat: reconstructions of the same shape.
            bits: size of each compressed image in bits, [B]; adds `bpp`.

        Returns:
            Name to values [B], float32. Scores that are not defined for this image size are omitted.

        Raises:
            ValueError: the shapes do not match.
        """
        x, x_hat = self._prepare(x, x_hat)
        values: dict[str, Tensor] = {}
        if bits is not None:
            if bits.shape != x.shape[:1]:
                raise ValueError(
                    f"bits has shape {list(bits.shape)}, expected one value per image: [{len(x)}]"
                )
            values[BPP] = bits_per_pixel(bits.to(x.device), *x.shape[-2:])
        with torch.autocast(x.device.type, enabled=False):
            for name, score in self._scores.items():
                try:
                    values[name] = score(x, x_hat)
                except NotMeasurable as error:
                    if name not in self._reasons:
                        warnings.warn(f"{name} is not measured for some images: {error}", stacklevel=2)
                    self._reasons[name] = str(error)
        return values

    @torch.no_grad()
    def update(self, x: Tensor, x_hat: Tensor, bits: Tensor | None = None) -> dict[str, Tensor]:
        """Score each image as `measure` does and add it to the means and the set metrics."""
        values = self.measure(x, x_hat, bits)
        for name, tally in self._each(self._tallies).items():
            tally.update(values.get(name, x.new_empty(0)))
        if self._set_metrics:
            x, x_hat = self._prepare(x, x_hat)
            for metric in self._each(self._set_metrics).values():
                metric.update(x, x_hat)
        return values

    def compute(self) -> dict[str, Tensor]:
        """Return name to scalar over everything since `reset`, equal on all processes.

        A collective operation under distributed training. Metrics without a value are omitted; `unavailable`
        has the reasons.
        """
        self.unavailable = dict(self._not_made)
        results: dict[str, Tensor] = {}
        for name, tally in self._each(self._tallies).items():
            if not tally.update_called:  # avoids torchmetrics' warning; an empty set is allowed
                tally.update(torch.empty(0))
            total, number = tally.compute()
            if number > 0:
                results[name] = total / number
            elif name != BPP:
                self.unavailable[name] = self._reasons.get(name, "no image was measured")
        for name, metric in self._each(self._set_metrics).items():
            try:
                with warnings.catch_warnings():  # a process may have no images
                    warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
                    results[name] = metric.compute()
            except NotMeasurable as error:
                self.unavailable[name] = str(error)
        return results

    def accumulated(self) -> dict[str, Tensor]:
        """Return what the set metrics have accumulated since `reset`, by `METRIC/STATE`.

        Its size does not depend on the number of images where a metric keeps sums (FID); metrics that keep
        features (KID, CMMD) return one row per patch.
        """
        found = {}
        for name, metric in self._each(self._set_metrics).items():
            for state, value in metric.metric_state.items():
                if isinstance(value, Tensor):
                    found[f"{name}/{state}"] = value.clone()
                elif value:
                    found[f"{name}/{state}"] = torch.cat(value)
        return found

    def merge(self, accumulated: Mapping[str, Tensor]) -> None:
        """Add what other set metrics have accumulated: sums are added, features are joined."""
        for name, metric in self._each(self._set_metrics).items():
            incoming: dict[str, Tensor | list[Tensor]] = {}
            for state, value in metric.metric_state.items():
                key = f"{name}/{state}"
                if isinstance(value, Tensor):
                    incoming[state] = accumulated[key].to(value)
                else:
                    incoming[state] = [accumulated[key]] if key in accumulated else []
            metric.merge_state(incoming)

    @property
    def not_mergeable(self) -> list[str]:
        """Names of the set metrics that `merge` cannot handle: torchmetrics merges no `full_state_update`."""
        metrics = self._each(self._set_metrics).items()
        return [name for name, m in metrics if m.full_state_update is not False or m.dist_sync_on_step]

    def empty_copy(self) -> "QualityMetrics":
        """Return a copy with empty counts that shares the networks."""
        networks = [cast(Frozen, score).module for score in self._scores.values()]
        for metric in self._each(self._set_metrics).values():
            networks += [child for child in metric.children() if not isinstance(child, Metric)]
        other = copy.deepcopy(self, {id(network): network for network in networks})
        other.reset()
        return other

    def reset(self) -> None:
        """Discard all images."""
        self._reasons.clear()
        self.unavailable = dict(self._not_made)
        for metric in (*self._each(self._tallies).values(), *self._each(self._set_metrics).values()):
            metric.reset()

    @staticmethod
    def _each(metrics: nn.ModuleDict) -> dict[str, Metric]:
        return {
            name: cast(Metric, metric.module if isinstance(metric, Frozen) else metric)
            for name, metric in metrics.items()
        }

    def _prepare(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape != x_hat.shape or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(
                f"x and x_hat must both be [B, 3, H, W], got {list(x.shape)} and {list(x_hat.shape)}"
            )
        x, x_hat = x.float().clamp(-1, 1), x_hat.float().clamp(-1, 1)
        if self.eight_bit:
            saved = from_uint8(to_uint8(x_hat.nan_to_num()))
            x_hat = torch.where(x_hat.isnan(), x_hat, saved)  # NaN must stay visible in the metrics
        return x, x_hat


def bits_per_pixel(bits: Tensor, height: int, width: int) -> Tensor:
    """Return bits per pixel [B] of images of height x width pixels."""
    return bits.float() / (height * width)


class _Tally(Metric):
    """Sum and number of values over all processes; unlike MeanMetric, distinguishes "no samples" from NaN."""

    full_state_update = False
    total: Tensor
    number: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("number", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        self.total += values.sum()
        self.number += len(values)

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.total, self.number


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
        self.network = Frozen(_VGG16(_features(path)))

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Compare x and x_hat, float [B, 3, H, W] in [-1, 1]; returns [B]."""
        # require_grad: otherwise it returns inference tensors, which autograd cannot use.
        return self.network((x + 1) / 2, (x_hat + 1) / 2, require_grad=True).reshape(len(x))


class _VGG16(dists.DISTSNetwork):
    """torchmetrics' network with given features; its own constructor always downloads them."""

    def __init__(self, features: nn.Sequential) -> None:
        nn.Module.__init__(self)
        # VGG16's max-pooling layers, which DISTS replaces by L2 pooling, and their channels.
        pools = {4: 64, 9: 128, 16: 256, 23: 512}
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
