"""Polish: train D alone on the latents that the finished codec decodes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from glc.codec.weights.file import Weights
from glc.losses.adversarial import AdversarialLoss
from glc.losses.reconstruction import ReconstructionLoss
from glc.losses.terms import weighted_sum
from glc.models.autoencoder import Decoder
from glc.training.stages.base import Optimization
from glc.training.stages.codec import sample_rates
from glc.training.stages.finetune import FineTuneStage


class PolishStage(FineTuneStage):
    """Train the decoder of a finished codec on coded latents of all rates: L1 + LPIPS + 0.8 adversarial.

    ```
    x --E, g_a, Q, g_s (fixed, rate of its own)--> l_hat --decoder (trained)--> x_hat
    ```

    It is initialised from D. Symbols are rounded and z is a codeword, as in a file; the hyper-synthesis and
    the context model run in floating point, not in the codec's integers. Nothing before l_hat has a gradient,
    so the step costs less than stage III's. Files do not change, and files written before are decoded by the
    new decoder. A generator fitted to the codes that it will see: SeQ-GAN (Gu et al., 2022), RobusTok (Qiu et
    al., 2025).

    Args:
        codec: the finished codec.
        reconstruction: terms `l1` and `lpips`, or those of a mixture.
        adversarial: the adversarial loss with its discriminator.
        distortion_weights: weights of these terms and of the added losses of x and x_hat.
        optimization: optimizers and schedule.
        **options: see `Stage`.
    """

    kind = "decoder"
    compiled = ("decoder", "adversarial.discriminator")
    discriminator = "adversarial.discriminator"
    decoder: Decoder

    def __init__(
        self,
        codec: Weights,
        reconstruction: ReconstructionLoss,
        adversarial: AdversarialLoss,
        distortion_weights: Mapping[str, float],
        optimization: Optimization,
        **options: Any,
    ) -> None:
        super().__init__(codec, optimization, **options)
        self.reconstruction = reconstruction
        self.adversarial = adversarial
        self.distortion_weights = reconstruction.usable(distortion_weights)

    @torch.no_grad()
    def coded(self, x: Tensor, rate_index: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return D's input `[B, C, h, w]` for images at a rate index, and the estimated bits `[B]`."""
        out = self.model.coder(self.model.encoder(x), rate_index)
        return self.refined(out.latent_hat), out.bits

    def distortion(self, x: Tensor, x_hat: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Compare images `[B, 3, H, W]`; returns the terms and their weighted sum `[B]`."""
        terms = self.losses(self.reconstruction(x, x_hat), x, x_hat)
        return terms, weighted_sum(terms, self.distortion_weights, "stage.distortion_weights")

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Do one step on a batch of images, each at its own rate point."""
        x = self.images(batch)
        latent_hat, _ = self.coded(x, sample_rates(len(x), self.model.num_rates, x.device))
        x_hat = self.decoder(latent_hat)

        loss_d, terms_d = self.adversarial.discriminator_loss(x, x_hat, self.global_step)

        pixels = x_hat.detach().requires_grad_()
        terms, distortion = self.distortion(x, pixels)
        loss_g, terms_g = self.adversarial.generator_loss(
            x_hat, pixels, distortion, self.decoder.last_layer, self.global_step
        )
        self.optimize(loss_g + loss_d, batch_idx)
        terms["loss"] = distortion
        self.log_terms("train", {**terms, **terms_g, **terms_d, "discriminator": loss_d}, len(x))

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Decode validation images at every rate point; `val/loss` is the mean over the points."""
        x = self.images(batch)
        panel, total = {"x": x}, []
        for k in range(self.model.num_rates):
            latent_hat, bits = self.coded(x, k)
            x_hat = self.decoder(latent_hat)
            terms, loss = self.distortion(x, x_hat)
            terms |= {"loss": loss, "bpp": bits / (x.shape[-1] * x.shape[-2])}
            self.log_terms("val", {f"{name}/{k}": value for name, value in terms.items()}, len(x))
            self.log_quality(x, x_hat, f"/{k}")
            total.append(loss.mean())
            panel[f"rate_{k}"] = x_hat
        self.log_terms("val", {"loss": torch.stack(total)}, len(x))
        return panel
