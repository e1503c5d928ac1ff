"""Custom modules: a stage, and LightningModules independent of glc."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from glc.training.stages.transform import TransformStage


class Plain(L.LightningModule):
    """Denoise images with two layers."""

    def __init__(self, lr: float = 1e-2, noise: list[float] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return images like x `[B, 3, H, W]`."""
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean squared error."""
        loss = (self(batch.x) - batch.x).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the mean squared error."""
        self.log("val/loss", (self(batch.x) - batch.x).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), self.lr)


class Deeper(Plain):
    """`Plain` with a third layer."""

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__(lr)
        self.tail = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return images like x `[B, 3, H, W]`."""
        return self.tail(super().forward(x))


class FilteredStage(TransformStage):
    """Stage II with additional networks."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.prefilter = nn.Conv2d(3, 3, 1)
        self.model.add_module("gate", nn.Linear(2, 2))


class NoLoss(nn.Module):
    """Replaces a loss."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta
