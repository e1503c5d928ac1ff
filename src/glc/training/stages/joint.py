"""Stage III: joint training of the codec on pixels (paper section 4.4)."""

from typing import Any

import torch
from torch import Tensor

from glc.losses.adversarial import AdversarialLoss
from glc.losses.reconstruction import ReconstructionLoss
from glc.losses.terms import weighted_sum
from glc.models.autoencoder import Encoder
from glc.models.glc import GLCOutput
from glc.training.stages.codec import CodecStage


class JointStage(CodecStage):
    """Train all networks: R + lambda x [L1 + LPIPS + 0.8 adversarial + 0.05 D_code] + codebook loss of C_h.

    D_code compares E_VQ(x) and E_VQ(x_hat), where E_VQ is stage I's encoder, so that the reconstruction has
    the same codewords as the image.

    Args:
        vq_encoder: E_VQ, with the encoder's architecture; initialised with the encoder's weights.
        reconstruction: terms `l1` and `lpips`.
        adversarial: the adversarial loss with its discriminator.
        **options: see `CodecStage`.
    """

    needs = ("model.encoder", "model.decoder", "model.coder", "quantizer")
    frozen = ("vq_encoder", "quantizer")
    compiled = ("model.encoder", "model.decoder", "vq_encoder", "adversarial.discriminator")
    discriminator = "adversarial.discriminator"

    def __init__(
        self,
        vq_encoder: Encoder,
        reconstruction: ReconstructionLoss,
        adversarial: AdversarialLoss,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.vq_encoder = vq_encoder
        self.reconstruction = reconstruction
        self.adversarial = adversarial
        self.distortion_weights = reconstruction.usable(self.distortion_weights)

    def on_weights_loaded(self, loaded: list[str]) -> None:
        """Copy the loaded encoder to E_VQ; after stage II it still is stage I's."""
        if "vq_encoder" not in loaded:
            self.vq_encoder.load_state_dict(self.model.encoder.state_dict())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Do one step on a batch of images, each at its own rate point."""
        x = self.images(batch)
        rate_index = self.sample_rates(x)
        lmbda, share = self.lmbda[rate_index], self.share[rate_index]
        out = self.model(x, rate_index, self.noise)
        self.observe_hyper(out.z, out.z_indices)

        loss_d, terms_d = self.adversarial.discriminator_loss(x, out.x_hat, self.global_step)

        # L1, LPIPS and the adversarial loss are differentiated with respect to the pixels (see
        # AdversarialLoss). The code loss stays in the graph, because it also trains its predictor.
        pixels = out.x_hat.detach().requires_grad_()
        visible = self.pixel_terms(x, pixels)
        hidden = self.code_terms(x, out.x_hat)
        surrogate, terms_g = self.adversarial.generator_loss(
            out.x_hat,
            pixels,
            weighted_sum(visible, self._weights(visible), "stage.distortion_weights"),
            self.model.decoder.last_layer,
            self.global_step,
            scale=share * lmbda,
        )
        coding = self.coding_terms(out)
        loss_g = surrogate + (share * self.total(coding, hidden, lmbda, self._weights(hidden))).mean()
        self.optimize(loss_g + loss_d, batch_idx)

        terms = {**coding, **visible, **hidden}
        terms["loss"] = self.total(coding, {**visible, **hidden}, lmbda)
        self.log_terms("train", {**terms, **terms_g, **terms_d, "discriminator": loss_d}, len(x))

    def _weights(self, terms: dict[str, Tensor]) -> dict[str, float]:
        return {name: w for name, w in self.distortion_weights.items() if name in terms}

    def pixel_terms(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """Compare images `[B, 3, H, W]`: the terms of `reconstruction` and of the added losses."""
        return self.losses(self.reconstruction(x, x_hat), x, x_hat)

    def code_terms(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """Return D_code(E_VQ(x), E_VQ(x_hat)): `code_ce` and `latent_mse`, each `[B]`."""
        with torch.no_grad():
            latent = self.vq_encoder(x)
            indices = self.quantizer.encode(latent)
        return self.code_loss(latent, self.vq_encoder(x_hat), indices)

    def validate_rate(self, x: Tensor, rate_index: int) -> tuple[dict[str, Tensor], GLCOutput]:
        """Code images at a rate point."""
        out = self.model(x, rate_index)
        coding = self.coding_terms(out)
        distortion = {**self.pixel_terms(x, out.x_hat), **self.code_terms(x, out.x_hat)}
        total = self.total(coding, distortion, self.lmbda[rate_index])
        return {**coding, **distortion, "loss": total}, out
