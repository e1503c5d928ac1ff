"""Panels of validation images and their reconstructions."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchvision.utils import save_image

from glc.training.loggers import log_images


class ReconstructionPanel(L.Callback):
    """Save the first validation images beside their reconstructions, and log them.

    Each image becomes one strip: the original, then its reconstructions. `validation_step` must return them:
    a dict of names to images `[B, 3, H, W]` in [-1, 1], the original first. For a module that returns
    anything else there is no panel.

    Args:
        dirpath: folder of `NN-step-SSSSSS.png`.
        images: number of strips.
    """

    def __init__(self, dirpath: str | Path, images: int = 4) -> None:
        self.dirpath = Path(dirpath)
        self.images = images
        self._strips: list[Tensor] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Clear the strips of the last validation."""
        self._strips = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images that `validation_step` returned."""
        if not trainer.is_global_zero or not isinstance(outputs, dict):
            return
        columns = [images for images in outputs.values() if isinstance(images, Tensor) and images.ndim == 4]
        for images in zip(*columns, strict=False):
            if len(self._strips) < self.images:
                strip = torch.cat([image.float().cpu() for image in images], dim=2)
                self._strips.append((strip.clamp(-1, 1) + 1) / 2)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the strips."""
        if not self._strips or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.dirpath.mkdir(parents=True, exist_ok=True)
        paths = []
        for i, strip in enumerate(self._strips):
            path = self.dirpath / f"{i:02d}-step-{trainer.global_step:06d}.png"
            save_image(strip, path)
            paths.append(path)
        for logger in trainer.loggers:
            log_images(logger, "val/panel", paths, trainer.global_step)
