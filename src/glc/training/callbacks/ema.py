"""Exponential moving average (EMA) of the weights."""

from collections import defaultdict
from itertools import chain
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from glc.data.stream import images_of
from glc.training.stages.base import Stage


class EMA(WeightAveraging):
    """Keep an exponential moving average of all weights, which validation, checkpoints and export use.

    Two differences from Lightning's `EMAWeightAveraging`. Weights that do not change keep their exact values:
    `decay * a + (1 - decay) * a` differs from `a` in its last digits, which adds up to 1e-4 of a frozen
    weight over a training run; interpolation gives `a`. And the average is on the device of the weights:
    Lightning creates it before they are moved and leaves it on the CPU, so that each step would
    copy all weights there.

    Args:
        decay: weight of the old average per step, in [0, 1).
        validate_live: in validations of the stages, also compute the loss of the weights before averaging,
            `val/loss_live`, on the same images.

    Raises:
        ValueError: when decay is out of range.
    """

    def __init__(self, decay: float = 0.999, validate_live: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay must lie in [0, 1), got {decay}")
        super().__init__()
        self._interpolate = get_ema_multi_avg_fn(decay)
        self.validate_live = validate_live
        self._changing: set[int] = (
            set()
        )  # positions of weights that were trained; the others stay as they are

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints, that of version 0.1, whose checkpoints can be resumed."""
        return "MovingAverage"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the average to the device of the weights; the step counter stays on the CPU (no GPU sync).

        Also convert it to their memory format, which was set after the average was created: with different
        formats an update is one call per weight instead of one for all.
        """
        if self._average_model is not None:
            average = self._average_model.module.to(pl_module.device)
            for old, new in zip(average.parameters(), pl_module.parameters(), strict=True):
                old.data = torch.empty_like(new, dtype=old.dtype).copy_(old.data)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after a step."""
        if trainer.global_step > self._latest_update_step:
            self._update(pl_module)
            self._latest_update_step = trainer.global_step

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Validate the batch again with the live weights, whose loss alone is logged."""
        if not self.validate_live or self._average_model is None or not isinstance(pl_module, Stage):
            return
        self._swap_models(pl_module)
        try:
            with pl_module.unlogged() as terms:
                pl_module.validation_step(batch, batch_idx)
        finally:
            self._swap_models(pl_module)
        pl_module.log("val/loss_live", terms["loss"], batch_size=len(images_of(batch)), sync_dist=True)

    @torch.no_grad()
    def _update(self, module: nn.Module) -> None:
        average = self._average_model
        assert average is not None
        kept = chain(average.module.parameters(), average.module.buffers())
        first = not average.n_averaged
        grouped: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for i, (old, new) in enumerate(zip(kept, chain(module.parameters(), module.buffers()), strict=True)):
            if new.requires_grad or not isinstance(new, nn.Parameter):
                self._changing.add(i)
            if first:
                old.copy_(new)
            elif i in self._changing:
                grouped[old.dtype][0].append(old.detach())
                grouped[old.dtype][1].append(new.detach())
        for olds, news in grouped.values():
            self._interpolate(olds, news, average.n_averaged)
        average.n_averaged += 1

    def counterpart(self, module: L.LightningModule, part: nn.Module) -> nn.Module | None:
        """Return the averaged copy of a submodule; None before the average exists."""
        if self._average_model is None:
            return None
        name = next(name for name, candidate in module.named_modules() if candidate is part)
        return self._average_model.module.get_submodule(name)
