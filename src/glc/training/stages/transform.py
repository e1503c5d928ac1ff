"""Stage II: the latent transform coder between a fixed E and D (paper section 4.2)."""

from typing import Any

import torch
from torch import Tensor

from glc.models.coder import CoderOutput, IndicesMapCoder
from glc.models.glc import GLCOutput
from glc.training.stages.codec import CodecStage


class TransformStage(CodecStage):
    """Train the coder: R + lambda x D_code(l, l_hat) + codebook loss of C_h, with E and D fixed."""

    compiled = ("model.encoder",)

    needs = ("model.encoder", "model.decoder", "quantizer")
    frozen = ("model.encoder", "model.decoder", "quantizer")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.freeze_parts()

    def adopt(self, loaded: list[str]) -> None:
        """Make the codebooks of indices-map coding from C, once C has its weights."""
        if isinstance(self.model.coder, IndicesMapCoder) and "model.coder" not in loaded:
            self.model.coder.initialize(self.quantizer.codebook())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Do one step on a batch of pictures, each at its own rate point."""
        x = self.pictures(batch)
        rate = self.draw_rates(x)
        with torch.no_grad():
            latent = self.model.encoder(x)
            indices = self.quantizer.encode(latent)
        coded = self.model.coder(latent, rate, self.noise)
        self.observe_hyper(coded.z, coded.z_indices)

        terms = self.code_terms(latent, indices, coded, self.lmbda[rate])
        self.optimize((self.share[rate] * terms["loss"]).mean(), batch_idx)
        self.log_terms("train", terms, len(x))

    def code_terms(
        self, latent: Tensor, indices: Tensor, coded: CoderOutput, lmbda: Tensor
    ) -> dict[str, Tensor]:
        """Return all loss terms of coded latents, with their total `loss`; each is `[B]`."""
        distortion = self.code_loss(latent, coded.latent_hat, indices)
        coding = self.coding_terms(coded)
        return {**coding, **distortion, "loss": self.total(coding, distortion, lmbda)}

    def validate_rate(self, x: Tensor, rate: int) -> tuple[dict[str, Tensor], GLCOutput]:
        """Code pictures at a rate point."""
        out = self.model(x, rate)
        return self.code_terms(out.latent, self.quantizer.encode(out.latent), out, self.lmbda[rate]), out
