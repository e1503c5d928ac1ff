"""Resume with changed settings: the configuration wins, states are kept where they do not contradict it."""

import logging
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

log = logging.getLogger(__name__)

_STATELESS = {"weight_decay", "maximize", "foreach", "fused", "capturable", "differentiable", "nesterov"}
"""Options of optimizers that need no state of their own when they are turned on."""


class ApplySettings(L.Callback):
    """Give a resumed run the options of its own configuration, in place of those in the checkpoint.

    Lightning restores optimizers and schedulers with all their options, so a new learning rate, weight decay
    or schedule would be ignored. Here moments and step counts come from the checkpoint, options from the
    configuration, and the learning rate is that of a run with this configuration from the first step on.
    The state of an optimizer that the checkpoint's does not fit (another class, other parameter groups)
    starts anew. Without EMA in the configuration, training continues with the live weights.

    Args:
        changed: whether the settings differ from the checkpoint's; otherwise all states are restored as is.
    """

    def __init__(self, changed: bool) -> None:
        self.changed = changed
        self._checkpoint: dict[str, Any] | None = None

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the checkpoint; the trainer restores its optimizers after `on_fit_start`."""
        self._checkpoint = checkpoint if self.changed else None
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        averaged = any(isinstance(callback, WeightAveraging) for callback in callbacks)
        if not averaged and "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace the options in the checkpoint by those of the optimizers and schedulers just created."""
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for i, before in enumerate(checkpoint["lr_schedulers"][: len(schedulers)]):
            _forward(schedulers[i], before.get("last_epoch", checkpoint["global_step"]))
        # A plateau scheduler depends on past values: it keeps its state, and its optimizer the reduced rate.
        adaptive = {id(s.optimizer) for s in schedulers if isinstance(s, ReduceLROnPlateau)}
        checkpoint["lr_schedulers"] = [
            before if isinstance(scheduler, ReduceLROnPlateau) else scheduler.state_dict()
            for scheduler, before in zip(schedulers, checkpoint["lr_schedulers"], strict=False)
        ]
        saved, states = checkpoint["optimizer_states"], []
        for i, optimizer in enumerate(trainer.optimizers):
            problem = "the checkpoint has none" if i >= len(saved) else misfit(optimizer, saved[i])
            groups = optimizer.state_dict()["param_groups"]
            if problem is not None:
                log.warning("the state of optimizer %d starts anew: %s", i + 1, problem)
            elif id(optimizer) in adaptive:
                groups = [
                    {**g, "lr": old["lr"]} for g, old in zip(groups, saved[i]["param_groups"], strict=True)
                ]
            states.append({"state": {} if problem else saved[i]["state"], "param_groups": groups})
        checkpoint["optimizer_states"] = states

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the next epoch if the checkpoint is of the end of one that had no validation.

        With `max_steps`, Lightning would train one batch more than the epoch has; only a validation that is
        due keeps it from that.
        """
        loop = trainer.fit_loop
        if loop.restarted_on_epoch_end and trainer.is_last_batch:
            loop.epoch_progress.increment_completed()
            loop.epoch_loop.restarting = False
            for part in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
                part.reset_restart_stage()


def _forward(scheduler: Any, steps: int) -> None:
    """Advance a new scheduler, and the learning rates of its optimizer, by a number of steps."""
    if isinstance(scheduler, ReduceLROnPlateau):
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        if isinstance(scheduler, LambdaLR) and steps:
            # Its rates depend on the last step only; others are stepped through.
            scheduler.last_epoch = steps - 1
            scheduler._step_count = steps
            steps = 1
        for _ in range(steps):
            scheduler.step()


def misfit(optimizer: Optimizer, saved: dict[str, Any]) -> str | None:
    """Return why a saved optimizer state does not fit an optimizer with other options; None if it fits.

    Args:
        optimizer: the optimizer.
        saved: state dict of an optimizer of the same networks.
    """
    new, old = optimizer.param_groups, saved["param_groups"]
    if [len(group["params"]) for group in new] != [len(group["params"]) for group in old]:
        return "other parameter groups"
    shapes = [p.shape for group in new for p in group["params"]]
    for number, values in saved["state"].items():
        if any(isinstance(v, Tensor) and v.ndim and v.shape != shapes[number] for v in values.values()):
            return "other parameter groups"
    for group, before in zip(new, old, strict=True):
        gone = before.keys() - group.keys() - {"initial_lr"}
        if gone:
            return f"{type(optimizer).__name__} has no option {min(gone)}"
        for name, value in group.items():
            if name not in ("params", *_STATELESS) and value and before.get(name, value) in (0, False):
                return f"{name} was {before[name]}"
    return None
