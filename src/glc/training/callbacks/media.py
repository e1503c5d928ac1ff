"""Panels of validation images and their reconstructions."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from glc.io.atomic import replacing
from glc.training.loggers import log_images


class ReconstructionPanel(L.Callback):
    """Save the first validation images beside their reconstructions, and log them.

    Each image becomes one strip: the original, then its reconstructions. `validation_step` must return them:
    a dict of names to images `[B, 3, H, W]` in [-1, 1], the original first. For a module that returns
    anything else there is no panel.

    Args:
        dirpath: folder of `NN-step-SSSSSS.png`; the text chunk `columns` of each is a JSON list of the names.
        images: number of strips.
    """

    def __init__(self, dirpath: str | Path, images: int = 4) -> None:
        self.dirpath = Path(dirpath)
        self.images = images
        self._strips: list[Tensor] = []
        self._columns: list[str] = []

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
        columns = {
            name: images
            for name, images in outputs.items()
            if isinstance(images, Tensor) and images.ndim == 4
        }
        self._columns = list(columns)
        for images in zip(*columns.values(), strict=False):
            if len(self._strips) < self.images:
                strip = torch.cat([image.float().cpu() for image in images], dim=2)
                self._strips.append((strip.clamp(-1, 1) + 1) / 2)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the strips."""
        if not self._strips or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        about = PngInfo()
        about.add_text("columns", json.dumps(self._columns))
        paths = []
        for i, strip in enumerate(self._strips):
            path = self.dirpath / f"{i:02d}-step-{trainer.global_step:06d}.png"
            pixels = (255 * strip).round().byte().permute(1, 2, 0).numpy()
            with replacing(path) as partial:
                Image.fromarray(pixels).save(partial, "png", pnginfo=about)
            paths.append(path)
        for logger in trainer.loggers:
            log_images(logger, "val/panel", paths, trainer.global_step)
