"""Base class of fine-tune stages: train one network for a finished codec."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from glc.codec.weights.file import Weights
from glc.codec.weights.labels import Kind
from glc.layers.frozen import Frozen
from glc.models.autoencoder import Decoder, Encoder
from glc.models.gate import QuantizationGate
from glc.models.glc import GLC
from glc.training.stages.base import Optimization, Stage


class FineTuneStage(Stage):
    """Base of the applications and of stage=gate: train one network; the codec is fixed.

    The codec is `Frozen`: checkpoints hold only the new network and the codec's fingerprint.

    Args:
        codec: the finished codec.
        optimization: optimizers and schedule.
        **options: see `Stage`.
    """

    kind: Kind | Literal["gate"]

    def __init__(self, codec: Weights, optimization: Optimization, **options: Any) -> None:
        super().__init__(optimization, **options)
        own, description = self.initial(codec)
        self.codec = Frozen(codec.model)
        setattr(self, self.kind, own.requires_grad_(True).train())
        self.variant = {
            "kind": self.kind,
            "fingerprint": codec.fingerprint,
            "description": description,
        }

    def initial(self, codec: Weights) -> tuple[nn.Module, Mapping[str, Any]]:
        """Return the network to train and its description: a copy of the codec's."""
        return copy.deepcopy(getattr(codec.model, self.kind)), codec.description[self.kind]

    @property
    def model(self) -> GLC:
        """The codec's networks."""
        assert isinstance(self.codec.module, GLC)
        return self.codec.module

    @property
    def own(self) -> Encoder | Decoder | QuantizationGate:
        """The trained network."""
        return getattr(self, self.kind)

    def refined(self, latent_hat: Tensor) -> Tensor:
        """Return D's input: l_hat, or its refinement in the ablation with a refiner."""
        return latent_hat if self.model.refiner is None else self.model.refiner(latent_hat)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the data that `glc export` needs for the variant's file."""
        checkpoint.setdefault("glc", {})["part"] = {**self.variant, "about": self.about()}

    def about(self) -> dict[str, Any]:
        """Return training data that is not in the settings, as plain values, for the variant's file."""
        return {"steps": self.global_step}

    def fixed_generator(self, batch_idx: int) -> Generator:
        """Return a generator for validation, seeded by the batch index: the same in every validation."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + batch_idx)

    def log_coded(self, x: Tensor, latent: Tensor, suffix: str = "") -> dict[int, Tensor]:
        """Code a latent at every rate point; log quality against x, and estimated bits per pixel.

        Returns:
            Rate point to l_hat.
        """
        coded = {}
        for k in range(self.model.num_rates):
            out = self.model.coder(latent, k)
            bpp = out.bits / (x.shape[-1] * x.shape[-2])
            self.log_terms("val", {f"bpp{suffix}/{k}": bpp}, len(x))
            self.log_quality(x, self.model.decode_latent(out.latent_hat), f"{suffix}/{k}")
            coded[k] = out.latent_hat
        return coded
