"""Stage I: the generative VQ-VAE (paper section 4.1)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from glc.losses.adversarial import AdversarialLoss
from glc.losses.latent import CodebookLoss
from glc.losses.reconstruction import ReconstructionLoss
from glc.losses.terms import weighted_sum
from glc.models.autoencoder import Decoder, Encoder, VQAutoencoder
from glc.models.quantizer import VectorQuantizer
from glc.training.stages.base import Optimization, Stage


class VQVAEStage(Stage):
    """Train E, D and C: L1 + LPIPS + 0.8 x adaptive adversarial + codebook loss.

    Args:
        encoder: E.
        decoder: D.
        quantizer: C.
        reconstruction: terms `l1` and `lpips`.
        adversarial: the adversarial loss with its discriminator.
        codebook: term `codebook`.
        distortion_weights: weights of the terms of `reconstruction` and of the added losses of x and x_hat.
        optimization: optimizers and schedule.
        codebook_weight: weight of the codebook loss.
        quantizer_bypass: probability, 0 to 1, that D decodes a training image from l itself, not from its
            codewords. Stage II gives D latents between the two; the paper trains D on codewords only (0).
        **options: see `Stage`.
    """

    compiled = ("autoencoder.encoder", "autoencoder.decoder", "adversarial.discriminator")
    discriminator = "adversarial.discriminator"

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        quantizer: VectorQuantizer,
        reconstruction: ReconstructionLoss,
        adversarial: AdversarialLoss,
        codebook: CodebookLoss,
        distortion_weights: Mapping[str, float],
        optimization: Optimization,
        codebook_weight: float = 1.0,
        quantizer_bypass: float = 0.0,
        **options: Any,
    ) -> None:
        if not 0 <= quantizer_bypass <= 1:
            raise ValueError(f"stage.quantizer_bypass: must lie in [0, 1], got {quantizer_bypass}")
        super().__init__(optimization, **options)
        self.autoencoder = VQAutoencoder(encoder, decoder, quantizer)
        self.reconstruction = reconstruction
        self.adversarial = adversarial
        self.codebook = codebook
        self.distortion_weights = reconstruction.usable(distortion_weights)
        self.codebook_weight = codebook_weight
        self.quantizer_bypass = quantizer_bypass

    def distortion(self, x: Tensor, x_hat: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Compare images `[B, 3, H, W]`; returns the terms and their weighted sum `[B]`."""
        terms = self.losses(self.reconstruction(x, x_hat), x, x_hat)
        return terms, weighted_sum(terms, self.distortion_weights, "stage.distortion_weights")

    def sample_bypass(self, x: Tensor) -> Tensor | None:
        """Sample which images of a batch bypass the quantizer, bool `[B]`; None if the probability is 0."""
        if self.quantizer_bypass == 0:
            return None
        return torch.rand(len(x), device=x.device) < self.quantizer_bypass

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Do one step on a batch of images."""
        x = self.images(batch)
        out = self.autoencoder(x, self.sample_bypass(x))
        self.observe("codebook", self.autoencoder.quantizer, out.latent, out.quantized.indices)

        loss_d, terms_d = self.adversarial.discriminator_loss(x, out.x_hat, self.global_step)

        pixels = out.x_hat.detach().requires_grad_()
        terms, distortion = self.distortion(x, pixels)
        terms["codebook"] = self.codebook(out.latent, out.quantized.codes)
        surrogate, terms_g = self.adversarial.generator_loss(
            out.x_hat, pixels, distortion, self.autoencoder.decoder.last_layer, self.global_step
        )
        loss_g = surrogate + self.codebook_weight * terms["codebook"].mean()
        self.optimize(loss_g + loss_d, batch_idx)

        terms["loss"] = distortion + self.codebook_weight * terms["codebook"]
        self.log_terms("train", {**terms, **terms_g, **terms_d, "discriminator": loss_d}, len(x))

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Reconstruct validation images from their codewords."""
        x = self.images(batch)
        out = self.autoencoder(x)
        self.observe("codebook", self.autoencoder.quantizer, out.latent, out.quantized.indices)
        terms, distortion = self.distortion(x, out.x_hat)
        terms["codebook"] = self.codebook(out.latent, out.quantized.codes)
        terms["loss"] = distortion + self.codebook_weight * terms["codebook"]
        self.log_terms("val", terms, len(x))
        self.log_quality(x, out.x_hat)
        return {"x": x, "x_hat": out.x_hat}
