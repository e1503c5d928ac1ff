"""What the stages share that train one network for a finished codec: an encoder or a decoder in its place."""

import copy
from typing import Any

import torch
from torch import Generator, Tensor

from glc.codec.weights.file import Kind, Weights
from glc.layers.frozen import Frozen
from glc.models.autoencoder import Decoder, Encoder
from glc.models.glc import GLC
from glc.training.stages.base import Optimization, Stage


class PartStage(Stage):
    """Base of the applications: one network is trained, started from the codec's own; the codec stays fixed.

    The codec is `Frozen`: checkpoints hold the new network only, and name the codec by its fingerprint.

    Args:
        codec: the finished codec.
        optimization: how to optimise.
        **options: see `Stage`.
    """

    kind: Kind

    def __init__(self, codec: Weights, optimization: Optimization, **options: Any) -> None:
        super().__init__(optimization, **options)
        own = copy.deepcopy(getattr(codec.model, self.kind))
        self.codec = Frozen(codec.model)
        setattr(self, self.kind, own.requires_grad_(True).train())
        self.part = {
            "kind": self.kind,
            "fingerprint": codec.fingerprint,
            "description": codec.description[self.kind],
        }

    @property
    def model(self) -> GLC:
        """The codec's networks."""
        assert isinstance(self.codec.module, GLC)
        return self.codec.module

    @property
    def own(self) -> Encoder | Decoder:
        """The network that is trained."""
        return getattr(self, self.kind)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `glc export` needs to make the network's file."""
        checkpoint.setdefault("glc", {})["part"] = {**self.part, "about": self.about()}

    def about(self) -> dict[str, Any]:
        """Return what the settings do not say of the network's training, as plain values, for its file."""
        return {"steps": self.global_step}

    def fixed_generator(self, batch_idx: int) -> Generator:
        """Return randomness for validation: the same for a batch whenever it is seen."""
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
