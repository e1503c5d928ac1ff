"""Stylization: a decoder that renders latents in the style of an image (paper sections 6 and 11)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glc.codec.weights.file import Weights
from glc.data.images import read_rgb, stack_images
from glc.losses.style import StyleLoss
from glc.losses.terms import weighted_sum
from glc.models.autoencoder import Decoder
from glc.training.stages.base import Optimization
from glc.training.stages.codec import sample_rates
from glc.training.stages.finetune import FineTuneStage

SHORTEST = 64
"""Shortest side in pixels: for much smaller images the last layer of `StyleLoss` would be empty."""


def read_style(path: str | Path, side: int) -> Tensor:
    """Return the style image `[1, 3, H, W]` in [-1, 1], resized to a short side of `side` pixels.

    Raises:
        ImageError: it cannot be read.
        ValueError: the side is too short for the networks.
    """
    if side < SHORTEST:
        raise ValueError(f"stage.style_size={side}: give {SHORTEST} pixels or more")
    x = stack_images([read_rgb(path)])
    height, width = x.shape[-2:]
    factor = side / min(height, width)
    size = (max(side, round(height * factor)), max(side, round(width * factor)))
    return F.interpolate(x, size, mode="bicubic", antialias=True).clamp(-1, 1)


class StylizationStage(FineTuneStage):
    """Train a decoder that renders coded latents with the content of x and the style of one image.

    ```
    x --E, g_a, Q, g_s (fixed)--> l_hat --decoder (trained)--> x_hat --.
    x ------------------------------------------------- content of ----+--> content + style
    style image ------------------------------------- style of ------'
    ```

    It is initialised from D. Encoder and files do not change: any file can be rendered in the style.

    Args:
        codec: the finished codec.
        style: file of the style image.
        style_size: short side of the style image in pixels; it sets the size of strokes.
        loss: terms `content` and `style`.
        weights: their weights, and those of the added losses of x and x_hat.
        optimization: optimizers and schedule.
        **options: see `Stage`.

    Raises:
        ImageError: the style image cannot be read.
        ValueError: style_size is too small.
    """

    kind = "decoder"
    compiled = ("decoder",)
    decoder: Decoder

    def __init__(
        self,
        codec: Weights,
        style: str,
        loss: StyleLoss,
        weights: Mapping[str, float],
        optimization: Optimization,
        style_size: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(codec, optimization, **options)
        self.loss = loss
        self.weights = dict(weights)
        for i, matrix in enumerate(loss.style_of(read_style(style, style_size))):
            self.register_buffer(f"style_{i}", matrix, persistent=False)
        self.style_name = Path(style).name

    def about(self) -> dict[str, Any]:
        """Add the file name of the style."""
        return {**super().about(), "style": self.style_name}

    @property
    def style(self) -> list[Tensor]:
        """The style's Gram matrices."""
        return [buffer for name, buffer in self.named_buffers(recurse=False) if name.startswith("style_")]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Do one step on a batch of images, each at its own rate point."""
        x = self.images(batch)
        with torch.no_grad():
            rate_index = sample_rates(len(x), self.model.num_rates, x.device)
            latent_hat = self.refined(self.model.coder(self.model.encoder(x), rate_index).latent_hat)
        terms = self.terms(x, self.decoder(latent_hat))
        self.optimize(terms["loss"].mean(), batch_idx)
        self.log_terms("train", terms, len(x))

    def terms(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """Compare images `[B, 3, H, W]`; returns the terms and their total `loss`, each `[B]`."""
        terms = self.losses(self.loss(x, x_hat, self.style), x, x_hat)
        return {**terms, "loss": weighted_sum(terms, self.weights)}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Render validation images at the highest rate; also with the codec's own decoder (`_plain`)."""
        x = self.images(batch)
        out = self.model.coder(self.model.encoder(x), self.model.num_rates - 1)
        plain, styled = self.model.decode_latent(out.latent_hat), self.decoder(self.refined(out.latent_hat))
        terms = {f"{name}_plain": value for name, value in self.terms(x, plain).items()}
        self.log_terms("val", {**self.terms(x, styled), **terms}, len(x))
        self.log_quality(x, styled)
        return {"x": x, "x_hat_plain": plain, "x_hat": styled}
