"""Stage II: the transform coder of latents, between fixed E and D (paper section 4.2)."""

from typing import Any, cast

import torch
from torch import Tensor

from glc.models.coder import CoderOutput
from glc.models.glc import GLCOutput
from glc.training.stages.codec import CodecStage


class TransformStage(CodecStage):
    """Train the coder: R + lambda x D_code(l, l_hat) + codebook loss of C_h, with E and D fixed."""

    compiled = ("model.encoder",)

    needs = ("model.encoder", "model.decoder", "quantizer")
    frozen = ("model.encoder", "model.decoder", "quantizer")

    def on_weights_loaded(self, loaded: list[str]) -> None:
        """Derive the coder's codebooks from C, if it quantises l itself."""
        if self.codes_latents and "model.coder" not in loaded:
            cast(Any, self.model.coder).initialize(self.quantizer.codebook())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Do one step on a batch of images, each at its own rate point."""
        x = self.images(batch)
        rate_index = self.sample_rates(x)
        with torch.no_grad():
            latent = self.model.encoder(x)
            indices = self.quantizer.encode(latent)
        coded = self.model.coder(latent, rate_index, self.noise)
        self.observe_hyper(coded.z, coded.z_indices)

        terms = self.code_terms(latent, indices, coded, self.lmbda[rate_index])
        self.optimize((self.share[rate_index] * terms["loss"]).mean(), batch_idx)
        self.log_terms("train", terms, len(x))

    def code_terms(
        self, latent: Tensor, indices: Tensor, coded: CoderOutput, lmbda: Tensor
    ) -> dict[str, Tensor]:
        """Return all loss terms of coded latents, with their total `loss`; each is `[B]`."""
        distortion = self.losses(self.code_loss(latent, coded.latent_hat, indices), latent, coded.latent_hat)
        coding = self.coding_terms(coded)
        return {**coding, **distortion, "loss": self.total(coding, distortion, lmbda)}

    def validate_rate(self, x: Tensor, rate_index: int) -> tuple[dict[str, Tensor], GLCOutput]:
        """Code images at a rate point."""
        out = self.model(x, rate_index)
        return self.code_terms(
            out.latent, self.quantizer.encode(out.latent), out, self.lmbda[rate_index]
        ), out
