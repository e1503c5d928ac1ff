"""How often each code is used, as histograms in W&B."""

import lightning as L
import numpy as np
import wandb
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from glc.metrics.codebook import CodebookUsage
from glc.training.stage import Stage

BINS = 256
"""W&B takes at most 512."""


class CodebookHistograms(L.Callback):
    """Send the codes' frequencies over the validation pictures to W&B, the most frequent codes first.

    `val/NAME_histogram` for each codebook: a collapsed one has all its mass at the left. Without a W&B
    logger it does nothing.
    """

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the counts, before the stage forgets them."""
        assert isinstance(pl_module, Stage)
        for key, metric in pl_module.usage.items():
            name, _, split = key.rpartition("_")
            if split != "val" or not isinstance(metric, CodebookUsage) or not metric.update_called:
                continue
            # All devices take part in the sum, also those that log nothing.
            counts = trainer.strategy.reduce(metric.counts.clone(), reduce_op="sum")
            assert isinstance(counts, Tensor)
            chart = wandb.Histogram(np_histogram=histogram(counts.cpu().numpy()))
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                    logged = {f"val/{name}_histogram": chart, "trainer/global_step": trainer.global_step}
                    logger.experiment.log(logged)


def histogram(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return counts in bins and the bins' edges, codes sorted by how often they were used.

    Args:
        counts: uses of each code `[M]`.
    """
    size = len(counts)
    bins = min(BINS, size)
    edges = np.linspace(0, size, bins + 1).round().astype(int)
    ordered = np.sort(counts)[::-1]
    return np.add.reduceat(ordered, edges[:-1]), edges
