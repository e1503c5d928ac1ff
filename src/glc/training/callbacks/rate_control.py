"""Hold the size of real files at a target by moving lambda during training."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from glc.errors import SettingError
from glc.training.stages.codec import CodecStage

log = logging.getLogger(__name__)


class RateControl(L.Callback):
    """Move the lambda of each rate point after each validation towards a target size of files.

    ```
    lambda_k <- lambda_k * clip((target_k / file_bpp_k) ** gain, 1 / max_factor, max_factor)
    ```

    file_bpp_k is `val/file_bpp/K`: bits per pixel of files that the exact coder writes for
    `stage.validate_files` images, so the target includes the header, and z in codes of fixed length. The size
    grows more slowly than lambda, by a power below 1 of it; a gain of 1 therefore does not overshoot. (DLF,
    2025, switches between given lambdas by upper and lower bounds of the rate.)

    With each validation `val/lmbda/K` is logged, before the change, and a line per rate point with size,
    estimate, target and both lambdas. The lambdas are part of checkpoints and of the codec that `glc export`
    writes. A checkpoint that is saved before the validation of its step does not have that validation's
    change: a run resumed from it makes the change at the next one.

    Args:
        target_bpp: bits per pixel, one value for all rate points or one per point, lowest rate first.
        gain: the exponent.
        max_factor: largest change of a lambda after one validation.

    Raises:
        SettingError: a value is out of range; later: the stage has no rate, or the targets are not one per
            rate point, or files are not measured.
    """

    def __init__(
        self, target_bpp: float | Sequence[float], gain: float = 1.0, max_factor: float = 1.5
    ) -> None:
        self.targets = [float(t) for t in (target_bpp if isinstance(target_bpp, Sequence) else [target_bpp])]
        if not all(0 < target < math.inf for target in self.targets):
            raise SettingError(f"callbacks.rate_control.target_bpp={target_bpp}: give numbers above 0")
        if not gain > 0 or not max_factor > 1:
            raise SettingError(
                f"callbacks.rate_control: needs gain > 0 and max_factor > 1, got gain={gain}, "
                f"max_factor={max_factor}"
            )
        self.gain, self.max_factor = gain, max_factor
        self.lmbda: list[float] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the present lambdas."""
        return {"lmbda": self.lmbda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the lambdas of a checkpoint."""
        self.lmbda = state_dict["lmbda"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the settings; set the lambdas of a checkpoint."""
        if not isinstance(pl_module, CodecStage):
            raise SettingError(
                f"callbacks.rate_control: {type(pl_module).__name__} has no rate; use it with "
                "stage=transform or stage=joint"
            )
        if not pl_module.validate_files:
            raise SettingError("callbacks.rate_control: needs files; give stage.validate_files=4")
        count = pl_module.model.num_rates
        if len(self.targets) not in (1, count):
            raise SettingError(
                f"callbacks.rate_control.target_bpp: {len(self.targets)} values for {count} rate points; "
                f"give one, or {count}"
            )
        if self.lmbda is None:
            self.lmbda = pl_module.lmbda.tolist()
        else:
            pl_module.set_lambdas(torch.tensor(self.lmbda))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the lambdas that lead to the sizes of this validation."""
        if self._controls(trainer):
            pl_module.log_dict({f"val/lmbda/{k}": value for k, value in enumerate(self.lmbda or ())})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the lambdas."""
        if not self._controls(trainer):
            return
        assert isinstance(pl_module, CodecStage)
        assert self.lmbda is not None
        found = trainer.callback_metrics  # means over all devices: the same on each
        if "val/file_bpp/0" not in found:
            raise SettingError("callbacks.rate_control: val/file_bpp is not measured (see the warning)")
        targets = self.targets * (len(self.lmbda) // len(self.targets))
        for k, (target, before) in enumerate(zip(targets, self.lmbda, strict=True)):
            size, estimate = (float(found[f"val/{name}/{k}"]) for name in ("file_bpp", "file_bpp_estimate"))
            if not 0 < size < math.inf:
                continue  # latents were not finite
            factor = (target / size) ** self.gain
            self.lmbda[k] = before * min(max(factor, 1 / self.max_factor), self.max_factor)
            if trainer.is_global_zero:
                log.info(
                    "rate point %d: files %.5f bpp (estimate %.5f), target %.5f: lambda %.4g -> %.4g",
                    *(k, size, estimate, target, before, self.lmbda[k]),
                )
        pl_module.set_lambdas(torch.tensor(self.lmbda))

    def _controls(self, trainer: L.Trainer) -> bool:
        """Return whether a validation is one of the training, not one before it."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        return fitting and not trainer.sanity_checking and self.lmbda is not None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record the lambdas for `glc export`."""
        if self.lmbda is not None:
            checkpoint.setdefault("glc", {})["lmbda"] = list(self.lmbda)
