"""Base class of stages II and III: rate points, objective, validation at every rate point."""

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glc.codec.file_size import file_sizes
from glc.errors import InexactError
from glc.losses.latent import CodebookLoss, CodePredictionLoss, RateLoss
from glc.losses.terms import weighted_sum
from glc.models.coder import CoderOutput
from glc.models.glc import GLC, GLCOutput
from glc.models.quantizer import VectorQuantizer
from glc.training.stages.base import Optimization, Stage

log = logging.getLogger(__name__)


class CodecStage(Stage):
    """Base of the stages that train the latent coder: rate points, lambdas, validation at every rate point.

    Args:
        model: the codec.
        quantizer: C, the codebook of the targets M_l; not trained here.
        predictor: CP, or None for the ablation without it. A model with a refiner uses the refiner's.
        codebook: loss of the hyperprior's codebook C_h.
        lmbda: lambda, one value or one per rate point, lowest rate first.
        weights: weights of rate and codebook terms.
        distortion_weights: weights of the distortion terms, added losses among them, which lambda multiplies.
        optimization: optimizers and schedule.
        noise: estimate the rate with uniform noise instead of rounding.
        balance: scale each image's objective by mean(lambda) / lambda, so that rate points with a large
            lambda do not dominate the gradient of shared weights. The optimum of each point is unchanged.
        validate_files: images of the first validation batch whose files are measured, per device; 0: none.
        **options: see `Stage`.
    """

    lmbda: Tensor
    share: Tensor
    """Weight of a rate point's images, `[K]`; 1 without `balance`."""

    def __init__(
        self,
        model: GLC,
        quantizer: VectorQuantizer,
        predictor: nn.Module | None,
        codebook: CodebookLoss,
        lmbda: float | Sequence[float],
        weights: Mapping[str, float],
        distortion_weights: Mapping[str, float],
        optimization: Optimization,
        noise: bool = True,
        balance: bool = False,
        validate_files: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(optimization, **options)
        if validate_files < 0:
            raise ValueError(f"stage.validate_files: must not be negative, got {validate_files}")
        self.validate_files = validate_files
        self.model = model
        self.quantizer = quantizer
        if model.refiner is not None:
            # The refiner shares C: the decoder's codewords are those whose indices CP learns to predict.
            model.refiner.quantizer = quantizer
        self.code_loss = CodePredictionLoss(predictor if model.refiner is None else model.refiner.predictor)
        self.rate_loss = RateLoss()
        self.codebook = codebook
        self.balance = balance
        self.register_buffer("lmbda", lambdas(lmbda, model.num_rates), persistent=False)
        self.register_buffer("share", torch.ones_like(self.lmbda), persistent=False)
        self.set_lambdas(self.lmbda)
        self.weights = dict(weights)
        self.distortion_weights = dict(distortion_weights)
        if self.code_loss.predictor is None:
            self.distortion_weights.pop("code_ce", None)
        self.noise = noise

    @property
    def codes_latents(self) -> bool:
        """Whether the coder quantises l itself, with codebooks derived from C (`initialize`)."""
        return hasattr(self.model.coder, "initialize")

    def missing(self, loaded: list[str]) -> list[str]:
        """Return the required networks that `init_from` did not provide; C only if it is used."""
        missing = super().missing(loaded)
        derived = self.codes_latents and "model.coder" not in loaded
        if self.code_loss.predictor is None and not derived:
            # A codec's weights file has no C and is sufficient.
            missing = [name for name in missing if name != "quantizer"]
        return missing

    def set_lambdas(self, values: Tensor) -> None:
        """Set lambda of each rate point, `[K]`."""
        self.lmbda.copy_(values)
        if self.balance:
            self.share.copy_(self.lmbda.mean() / self.lmbda)

    def sample_rates(self, x: Tensor) -> Tensor:
        """Sample a rate point for each image `[B]`: this device's share of the sample of the step."""
        b, world, accumulate = len(x), self.trainer.world_size, self.optimization.accumulate
        step = self.position - self.accumulated  # the position of the step's first batch
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rates = sample_rates(b * world * accumulate, self.model.num_rates, x.device, generator)
        start = (self.accumulated * world + self.global_rank) * b
        return rates[start : start + b]

    def coding_terms(self, out: CoderOutput) -> dict[str, Tensor]:
        """Return the terms `rate_y`, `rate_z` and, where a codebook is trained, `codebook`."""
        terms = self.rate_loss(out.bits_y, out.bits_z, out.latent_hat)
        if out.z_codes is not None:
            terms["codebook"] = self.codebook(out.z, out.z_codes)
        return terms

    def total(
        self,
        coding: Mapping[str, Tensor],
        distortion: Mapping[str, Tensor],
        lmbda: Tensor,
        distortion_weights: Mapping[str, float] | None = None,
    ) -> Tensor:
        """Return the objective `[B]`: weighted rate and codebook terms + lambda x weighted distortion.

        If the coder quantises l itself (`codes_latents`), the codebook term is part of the distortion, as in
        stage I: without the factor lambda it would be too weak to keep E's vectors near their codewords.
        """
        weights = {name: w for name, w in self.weights.items() if name != "codebook" or name in coding}
        if distortion_weights is None:
            distortion_weights = self.distortion_weights
        if self.codes_latents and "codebook" in weights:
            distortion = {**distortion, "codebook": coding["codebook"]}
            distortion_weights = {**distortion_weights, "codebook": weights.pop("codebook")}
            coding = {name: value for name, value in coding.items() if name != "codebook"}
        distorted = weighted_sum(distortion, distortion_weights, "stage.distortion_weights")
        return weighted_sum(coding, weights, "stage.weights") + lmbda * distorted

    def observe_hyper(self, z: Tensor, indices: Tensor) -> None:
        """Record inputs and indices of C_h, if the hyperprior has a codebook (`quantizer`)."""
        quantizer = getattr(getattr(self.model.coder, "hyper", None), "quantizer", None)
        if quantizer is not None:
            self.observe("hyper_codebook", quantizer, z, indices)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Code validation images at every rate point; `val/loss` is the mean over the points."""
        x = self.images(batch)
        panel = {"x": x}
        total, estimates = [], []
        for k in range(self.model.num_rates):
            terms, out = self.validate_rate(x, k)
            self.observe_hyper(out.z, out.z_indices)
            bpp = out.bits / (x.shape[-1] * x.shape[-2])
            self.log_terms("val", {f"{name}/{k}": v for name, v in {**terms, "bpp": bpp}.items()}, len(x))
            self.log_quality(x, out.x_hat, f"/{k}")
            total.append(terms["loss"].mean())
            estimates.append(bpp[: self.validate_files])
            panel[f"rate_{k}"] = out.x_hat
        self.log_terms("val", {"loss": torch.stack(total)}, len(x))
        if batch_idx == 0 and self.validate_files:
            self.log_files(x[: self.validate_files], torch.stack(estimates))
        return panel

    def log_files(self, x: Tensor, estimates: Tensor) -> None:
        """Log `val/file_bpp/K` and `val/file_bpp_estimate/K`: bits per pixel of files at each rate point.

        Args:
            x: the images `[B, 3, H, W]`.
            estimates: their estimated bits per pixel `[K, B]`.
        """
        try:
            sizes = file_sizes(self.model, x)
        except InexactError as error:  # the same on every device
            log.warning("val/file_bpp: not measured: %s", error)
            self.validate_files = 0
            return
        except ValueError as error:
            log.warning("val/file_bpp: not measured: %s", error)
            sizes = x.new_full(
                (self.model.num_rates, len(x)), math.nan
            )  # all devices must log the same names
        bpp = 8 * sizes / (x.shape[-1] * x.shape[-2])
        for name, measured in (("file_bpp", bpp), ("file_bpp_estimate", estimates)):
            self.log_terms("val", {f"{name}/{k}": values for k, values in enumerate(measured)}, len(x))

    @abstractmethod
    def validate_rate(self, x: Tensor, rate_index: int) -> tuple[dict[str, Tensor], GLCOutput]:
        """Code images at a rate point; return the loss terms, each `[B]`, with their total `loss`."""


def lambdas(values: float | Sequence[float], num_rates: int) -> Tensor:
    """Return one lambda per rate point `[K]` from one value for all or a list.

    Raises:
        ValueError: the list has another length, or a value is not positive and finite.
    """
    listed = list(values) if isinstance(values, Sequence) else [values] * num_rates
    if len(listed) != num_rates:
        raise ValueError(
            f"stage.lmbda: {len(listed)} values for the model's {num_rates} rate points; "
            f"give one value, or {num_rates} (model.num_rates)"
        )
    if not all(0 < value < math.inf for value in listed):
        raise ValueError(f"stage.lmbda: must be positive and finite, got {listed}")
    return torch.tensor([float(value) for value in listed])


def sample_rates(
    batch_size: int, num_rates: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Sample a rate point for each image `[B]`, int64, such that all points are equally frequent in a batch.

    In a batch smaller than the number of points, all rate points are different.
    """
    rounds = -(-batch_size // num_rates)
    points = torch.cat([torch.randperm(num_rates, generator=generator) for _ in range(rounds)])
    points = points[:batch_size]
    if device.type == "cuda":
        # Only a copy from pinned memory is asynchronous.
        return points.pin_memory().to(device, non_blocking=True)
    return points.to(device)
