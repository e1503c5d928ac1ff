"""A training stage before stage I."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from glc.losses.terms import weighted_sum
from glc.training.stages.base import Stage


class PretrainStage(Stage):
    """Train E and D as a plain auto-encoder, without a codebook.

    Args:
        encoder: E.
        decoder: D.
        distortion_weights: weights of the term `l1` and of the terms of `stage.losses`.
        **options: see `Stage`.
    """

    compiled = ("autoencoder.encoder", "autoencoder.decoder")

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, distortion_weights: Mapping[str, float], **options: Any
    ) -> None:
        super().__init__(**options)
        # `init_from` matches networks by name: stage I uses these names.
        self.autoencoder = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        self.distortion_weights = dict(distortion_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return x_hat."""
        return self.autoencoder["decoder"](self.autoencoder["encoder"](x))

    def terms(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """Return the loss terms and their weighted sum `loss`, each `[B]`."""
        terms = self.losses({"l1": (x - x_hat).abs().mean((1, 2, 3))}, x, x_hat)
        return {**terms, "loss": weighted_sum(terms, self.distortion_weights, "stage.distortion_weights")}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Run one optimisation step."""
        x = self.images(batch)
        terms = self.terms(x, self(x))
        self.optimize(terms["loss"].mean(), batch_idx)
        self.log_terms("train", terms, len(x))

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Log losses and metrics; return the images for the panel."""
        x = self.images(batch)
        x_hat = self(x)
        self.log_terms("val", self.terms(x, x_hat), len(x))
        self.log_quality(x, x_hat)
        return {"x": x, "x_hat": x_hat}
