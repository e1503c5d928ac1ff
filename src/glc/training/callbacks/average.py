"""A moving average of the weights."""

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage(WeightAveraging):
    """Keep an exponential moving average of all weights: what validation, checkpoints and export use.

    Unlike Lightning's `EMAWeightAveraging` it leaves exactly alone what does not move. Frozen networks are
    part of the average, and `decay * a + (1 - decay) * a` differs from `a` in its last digits; over a
    training these differences add up to 1e-4 of a weight. Interpolating, as here, gives `a`.

    Args:
        decay: share of the old average, per step, in [0, 1).

    Raises:
        ValueError: when decay is out of range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay must lie in [0, 1), got {decay}")
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def counterpart(self, module: L.LightningModule, part: nn.Module) -> nn.Module | None:
        """Return the average of a submodule, None before there is one."""
        if self._average_model is None:
            return None
        name = next(name for name, candidate in module.named_modules() if candidate is part)
        return self._average_model.module.get_submodule(name)
