"""A fixed panel of validation pictures and their reconstructions."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torchvision.utils import save_image


class ReconstructionPanel(L.Callback):
    """Save the first validation pictures beside their reconstructions, and send them to W&B.

    Each picture becomes one strip: the original, then one reconstruction per rate point.

    Args:
        dirpath: folder of `NN-step-SSSSSS.png`.
        pictures: number of strips.
    """

    def __init__(self, dirpath: str | Path, pictures: int = 4) -> None:
        self.dirpath = Path(dirpath)
        self.pictures = pictures
        self._strips: list[Tensor] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the strips of the last validation."""
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
        """Keep the first pictures; `outputs` maps names to pictures `[B, 3, H, W]`, the original first."""
        if not trainer.is_global_zero or not isinstance(outputs, dict):
            return
        for i in range(min(len(batch.x), self.pictures - len(self._strips))):
            strip = torch.cat([pictures[i].float().cpu() for pictures in outputs.values()], dim=2)
            self._strips.append((strip.clamp(-1, 1) + 1) / 2)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the strips."""
        if not self._strips:
            return
        self.dirpath.mkdir(parents=True, exist_ok=True)
        paths = []
        for i, strip in enumerate(self._strips):
            path = self.dirpath / f"{i:02d}-step-{trainer.global_step:06d}.png"
            save_image(strip, path)
            paths.append(str(path))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("val/panel", paths, step=trainer.global_step)
