"""Optimizers of a stage, for the networks and for the discriminator, and their schedules."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from glc.errors import SettingError

log = logging.getLogger(__name__)

OptimizerFactory = Callable[[Any], Optimizer]
"""Creates an optimizer from parameters or parameter groups."""
Schedule = Callable[[int], float] | partial[LRScheduler]
"""Factor on the learning rate as a function of the step, or a partial that creates a scheduler."""

# Options that the configuration sets for AdamW and WarmupCosine, and that other classes may lack.
_DEFAULTS = {
    "optimizer": {"betas", "fused", "weight_decay"},
    "discriminator_optimizer": set(),
    "schedule": {"warmup", "total", "hold", "floor"},
}


@dataclass
class Optimization:
    """Optimizers, schedule, clipping and accumulation of a stage.

    Args:
        optimizer: creates the optimizer of the networks, and by default the discriminator's.
        schedule: factor on the learning rate as a function of the step, such as
            `glc.training.schedule.WarmupCosine`; or a partial of a class of `torch.optim.lr_scheduler`, which
            takes the optimizer and is stepped once per training step.
        clip: maximum gradient norm, of the networks and of the discriminator; 0 for no clipping.
        accumulate: batches per step, to reach the paper's batch size on fewer devices.
        discriminator_optimizer: creates the discriminator's optimizer; None for `optimizer`.
        parameter_groups: options of groups of parameters, None for none. Each entry has `match`, a pattern of
            parameter names such as `model.decoder.*` or a list of them; optionally `max_dims`, to take only
            parameters of at most so many dimensions (1: biases and norms); and any options of the optimizer,
            or `lr_factor`, which multiplies its learning rate. The first entry that matches counts.

    Raises:
        SettingError: an option does not exist, or the optimizer or scheduler is not supported.
    """

    optimizer: OptimizerFactory
    schedule: Schedule
    clip: float = 1.0
    accumulate: int = 1
    discriminator_optimizer: OptimizerFactory | None = None
    parameter_groups: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        for name, defaults in _DEFAULTS.items():
            setattr(self, name, _usable(f"stage.{name}", getattr(self, name), defaults))
        if self.accumulate < 1:
            raise SettingError(f"stage.accumulate={self.accumulate}: give the batches per step, at least 1")
        self.parameter_groups = self.parameter_groups or []
        for i, group in enumerate(self.parameter_groups):
            if not group.get("match"):
                raise SettingError(f"stage.parameter_groups[{i}].match: give a pattern of parameter names")

    def make(
        self,
        networks: Mapping[str, nn.Parameter],
        discriminator: Mapping[str, nn.Parameter],
        frozen: Mapping[str, nn.Parameter] | None = None,
    ) -> tuple[list[Optimizer], list[LRScheduler]]:
        """Create the optimizers of the networks and of the discriminator, with a scheduler each.

        Args:
            networks: name to parameter.
            discriminator: the same; empty without a discriminator.
            frozen: parameters that are not trained. Groups may match them, because an experiment has the same
                groups in all stages.

        Raises:
            SettingError: a parameter group matches nothing or has an unknown option, or `schedule` returns no
                scheduler.
        """
        for i, group in enumerate(self.parameter_groups or []):
            known = {**networks, **discriminator, **(frozen or {})}
            if not any(_matches(group, name, p) for name, p in known.items()):
                examples = ", ".join(list(networks)[:3])
                raise SettingError(
                    f"stage.parameter_groups[{i}].match={group['match']}: no parameter matches; "
                    f"names are {examples}, ..."
                )
        optimizers = [self._optimizer(self.optimizer, networks)]
        if discriminator:
            optimizers.append(self._optimizer(self.discriminator_optimizer or self.optimizer, discriminator))
        return optimizers, [self._scheduler(optimizer) for optimizer in optimizers]

    def _optimizer(self, factory: OptimizerFactory, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
        if not self.parameter_groups:
            return factory(list(parameters.values()))
        grouped: list[list[nn.Parameter]] = [[] for _ in (*self.parameter_groups, "the rest")]
        for name, parameter in parameters.items():
            found = (i for i, group in enumerate(self.parameter_groups) if _matches(group, name, parameter))
            grouped[next(found, -1)].append(parameter)
        groups: list[dict[str, Any]] = [{"params": grouped[-1]}]
        for group, members in zip(self.parameter_groups, grouped, strict=False):
            options = {key: value for key, value in group.items() if key not in ("match", "max_dims")}
            groups.append({"params": members, **options})
        optimizer = factory([group for group in groups if group["params"]])
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_factor", 1)
            unknown = [key for key in group if key not in optimizer.defaults and key != "params"]
            if unknown:
                known = ", ".join(["lr_factor", *optimizer.defaults])
                name = type(optimizer).__name__
                raise SettingError(
                    f"stage.parameter_groups: {name} has no option {unknown[0]}; it has {known}"
                )
        return optimizer

    def _scheduler(self, optimizer: Optimizer) -> LRScheduler:
        if not isinstance(self.schedule, partial):
            return LambdaLR(optimizer, self.schedule)
        scheduler = self.schedule(optimizer)
        if not isinstance(scheduler, LRScheduler):
            raise SettingError(
                f"stage.schedule: {_name(self.schedule)} returned a {type(scheduler).__name__}, "
                "not a scheduler; for a function of the step, omit _partial_"
            )
        return scheduler


def _matches(group: Mapping[str, Any], name: str, parameter: nn.Parameter) -> bool:
    patterns = [group["match"]] if isinstance(group["match"], str) else group["match"]
    most = group.get("max_dims")
    return (most is None or parameter.ndim <= most) and any(fnmatchcase(name, p) for p in patterns)


def _name(factory: partial[Any]) -> str:
    return getattr(factory.func, "__name__", str(factory.func))


def _usable(key: str, factory: Any, defaults: set[str]) -> Any:
    """Return a partial without the defaults that its class does not accept; anything else unchanged.

    Raises:
        SettingError: an option does not exist or is missing, or `step()` needs arguments.
    """
    if not isinstance(factory, partial):
        return factory
    parameters = inspect.signature(factory.func).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        unknown = [name for name in factory.keywords if name not in parameters]
        wrong = [n for n in unknown if n not in defaults or (n == "weight_decay" and factory.keywords[n])]
        if wrong:
            known = ", ".join(list(parameters)[1:])
            raise SettingError(f"{key}.{wrong[0]}: {_name(factory)} has no such option; it has {known}")
        if unknown:
            log.info("%s: %s has no option %s; ignored", key, _name(factory), ", ".join(unknown))
        factory = partial(
            factory.func, *factory.args, **{k: v for k, v in factory.keywords.items() if k not in unknown}
        )
        try:
            inspect.signature(factory.func).bind(None, *factory.args, **factory.keywords)
        except TypeError as error:
            raise SettingError(f"{key}: {_name(factory)}: {error}") from error
    step = inspect.signature(getattr(factory.func, "step", lambda self: None))
    needed = [p.name for p in list(step.parameters.values())[1:] if p.default is p.empty]
    if needed:
        raise SettingError(f"{key}: {_name(factory)} is not supported: its step() needs {needed[0]}")
    return factory
