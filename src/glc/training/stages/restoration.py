"""Restoration and inpainting: a new encoder for degraded images (paper sections 6 and 11)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from glc.codec.weights.file import Weights
from glc.data.degradations import Degradation
from glc.losses.terms import weighted_sum
from glc.models.autoencoder import Encoder
from glc.training.stages.base import Optimization
from glc.training.stages.finetune import FineTuneStage


class RestorationStage(FineTuneStage):
    """Train an encoder that maps a degraded image to the clean image's latent.

    ```
    x --degradation--> degraded --encoder (trained)--> l_r --.
    x --E (fixed)------------------------------------> l  ---+--> latent_mse = mean |l - l_r|^2
    ```

    It is initialised from E. Transform, entropy model and D do not change, so any decoder of the codec can
    decode its files.

    Args:
        codec: the finished codec; its encoder is the teacher.
        degradation: applied to the images.
        weights: weights of `latent_mse` and of the added losses of l and l_r.
        optimization: optimizers and schedule.
        **options: see `Stage`.
    """

    kind = "encoder"
    compiled = ("encoder",)
    encoder: Encoder

    def __init__(
        self,
        codec: Weights,
        degradation: Degradation,
        weights: Mapping[str, float],
        optimization: Optimization,
        **options: Any,
    ) -> None:
        super().__init__(codec, optimization, **options)
        self.degradation = degradation
        self.weights = dict(weights)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Do one step on a batch of images."""
        x = self.images(batch)
        with torch.no_grad():
            target = self.model.encoder(x)
            degraded = self.degradation(x)
        terms = self.terms(target, self.encoder(degraded))
        self.optimize(terms["loss"].mean(), batch_idx)
        self.log_terms("train", terms, len(x))

    def terms(self, target: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """Compare latents `[B, C, h, w]`; returns the terms and their total `loss`, each `[B]`."""
        terms = self.losses({"latent_mse": (target - latent).square().mean((1, 2, 3))}, target, latent)
        return {**terms, "loss": weighted_sum(terms, self.weights)}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Restore validation images; also code them with the codec's own encoder (`_plain`)."""
        x = self.images(batch)
        degraded = self.degradation(x, self.fixed_generator(batch_idx))
        target, plain, latent = self.model.encoder(x), self.model.encoder(degraded), self.encoder(degraded)
        terms = {f"{name}_plain": value for name, value in self.terms(target, plain).items()}
        self.log_terms("val", {**self.terms(target, latent), **terms}, len(x))
        best = self.model.num_rates - 1
        images = {"x": x, "degraded": degraded}
        for name, own in (("_plain", plain), ("", latent)):
            images[f"x_hat{name}"] = self.model.decode_latent(self.log_coded(x, own, name)[best])
        return images
