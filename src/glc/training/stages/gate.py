"""The gate: coarser quantisation of y where little is lost, trained for a finished codec."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glc.codec.weights.file import Weights
from glc.errors import SettingError
from glc.losses.latent import RateLoss
from glc.losses.reconstruction import ReconstructionLoss
from glc.losses.terms import weighted_sum
from glc.models.coder import CoderOutput, TransformCoder
from glc.models.context import QuadtreeContext
from glc.models.gate import QuantizationGate
from glc.training.stages.base import Optimization
from glc.training.stages.codec import lambdas, sample_rates
from glc.training.stages.finetune import FineTuneStage


class GateStage(FineTuneStage):
    """Train `QuantizationGate`, which multiplies y's quantisation steps; all else of the codec is fixed.

    ```
    x --E, g_a (fixed)--> y -- Q with steps * rho --> y_hat --g_s, D (fixed)--> x_hat
                          '--> z_hat --gate (trained)--> rho
    loss = rate_y + lambda x [L1 + LPIPS + (mean rho - target)^2]
    ```

    rho is 1 at the start, or that of the codec's own gate. Symbols and files differ from the codec's, so the
    export is another codec, with another fingerprint.

    Args:
        codec: the finished codec.
        reconstruction: terms `l1` and `lpips`.
        lmbda: lambda, one value or one per rate point, lowest rate first; as in stage III.
        target: that the mean of rho is pulled to, at least 1.
        weights: weight of `rate_y`.
        distortion_weights: weights of `l1`, `lpips`, `rho` and the added losses of x and x_hat, which lambda
            multiplies.
        optimization: optimizers and schedule.
        width: channels within a new gate.
        noise: estimate the rate with uniform noise instead of rounding.
        balance: see `CodecStage`.
        **options: see `Stage`.

    Raises:
        SettingError: the codec has no `TransformCoder` with a `QuadtreeContext`, or the target is below 1.
    """

    kind = "gate"
    compiled = ("gate",)
    gate: QuantizationGate
    lmbda: Tensor
    share: Tensor

    def __init__(
        self,
        codec: Weights,
        reconstruction: ReconstructionLoss,
        lmbda: float | Sequence[float],
        target: float,
        weights: Mapping[str, float],
        distortion_weights: Mapping[str, float],
        optimization: Optimization,
        width: int = 32,
        noise: bool = True,
        balance: bool = False,
        **options: Any,
    ) -> None:
        coder = codec.model.coder
        if not isinstance(coder, TransformCoder) or not isinstance(coder.context, QuadtreeContext):
            raise SettingError(
                f"init_from: {codec.source} has no TransformCoder with a QuadtreeContext; give another codec"
            )
        if target < 1:
            raise SettingError(f"stage.target: rho is at least 1, got {target}")
        self.width = width  # read by `initial`
        super().__init__(codec, optimization, **options)
        coder.gate = None
        # Not as its submodule: the codec's networks are fixed, and the gate is the stage's.
        object.__setattr__(coder, "gate", self.gate)
        self.reconstruction = reconstruction
        self.rate_loss = RateLoss()
        self.register_buffer("lmbda", lambdas(lmbda, coder.num_rates), persistent=False)
        share = self.lmbda.mean() / self.lmbda if balance else torch.ones_like(self.lmbda)
        self.register_buffer("share", share, persistent=False)
        self.target = target
        self.weights = dict(weights)
        self.distortion_weights = reconstruction.usable(distortion_weights)
        self.noise = noise

    def initial(self, codec: Weights) -> tuple[nn.Module, Mapping[str, Any]]:
        """Return the codec's gate, or a new one whose rho is 1, with its description."""
        coder = codec.model.coder
        assert isinstance(coder, TransformCoder)
        if coder.gate is not None:
            return copy.deepcopy(coder.gate), codec.description["coder"]["gate"]
        arguments = {"channels": coder.context.channels, "num_rates": coder.num_rates, "width": self.width}
        target = f"{QuantizationGate.__module__}.{QuantizationGate.__qualname__}"
        return QuantizationGate(**arguments), {"_target_": target, **arguments}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Do one step on a batch of images, each at its own rate point."""
        x = self.images(batch)
        rate_index = sample_rates(len(x), self.model.num_rates, x.device)
        with torch.no_grad():
            latent = self.model.encoder(x)
        out = self.model.coder(latent, rate_index, self.noise)
        terms = self.terms(x, out, self.model.decode_latent(out.latent_hat), self.lmbda[rate_index])
        self.optimize((self.share[rate_index] * terms["loss"]).mean(), batch_idx)
        self.log_terms("train", terms, len(x))

    def terms(self, x: Tensor, out: CoderOutput, x_hat: Tensor, lmbda: Tensor) -> dict[str, Tensor]:
        """Return all loss terms of coded images with their total `loss`, and `rho_mean`; each is `[B]`."""
        assert out.rho is not None
        mean = out.rho.mean((1, 2, 3))
        pull = (mean.mean() - self.target).square().expand(len(x))
        distortion = {**self.losses(self.reconstruction(x, x_hat), x, x_hat), "rho": pull}
        rate = self.rate_loss(out.bits_y, out.bits_z, out.latent_hat)
        total = weighted_sum(rate, {"rate_z": 0.0, **self.weights}, "stage.weights")
        total = total + lmbda * weighted_sum(distortion, self.distortion_weights, "stage.distortion_weights")
        return {**rate, **distortion, "rho_mean": mean, "loss": total}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Code validation images at every rate point; `val/loss` is the mean over the points."""
        x = self.images(batch)
        latent, panel, total = self.model.encoder(x), {"x": x}, []
        for k in range(self.model.num_rates):
            out = self.model.coder(latent, k)
            x_hat = self.model.decode_latent(out.latent_hat)
            terms = self.terms(x, out, x_hat, self.lmbda[k])
            bpp = out.bits / (x.shape[-1] * x.shape[-2])
            self.log_terms("val", {f"{name}/{k}": v for name, v in {**terms, "bpp": bpp}.items()}, len(x))
            self.log_quality(x, x_hat, f"/{k}")
            total.append(terms["loss"].mean())
            panel[f"rate_{k}"] = x_hat
        self.log_terms("val", {"loss": torch.stack(total)}, len(x))
        return panel
