from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from glc.errors import SettingError
from glc.training.optimization import Optimization

ADAMW = partial(torch.optim.AdamW, lr=0.1, betas=[0.5, 0.9], weight_decay=0.0, fused=True)


def flat(step: int) -> float:
    return 1.0


def parameters(*names: str) -> dict[str, nn.Parameter]:
    """A matrix for each weight, a vector for all other names."""
    return {name: nn.Parameter(torch.ones((2, 2) if name.endswith("weight") else 2)) for name in names}


NETWORKS = ("model.encoder.weight", "model.encoder.bias", "model.coder.weight")


def options(optimizer: torch.optim.Optimizer, *keys: str) -> list[tuple[Any, ...]]:
    """Return number of parameters and the given options of each group."""
    return [(len(group["params"]), *(group[key] for key in keys)) for group in optimizer.param_groups]


def test_default_is_one_optimizer_with_one_group() -> None:
    networks = parameters(*NETWORKS)
    (optimizer,), (scheduler,) = Optimization(ADAMW, flat).make(networks, {})
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in networks.values()]
    assert (group["lr"], group["betas"], group["fused"]) == (0.1, (0.5, 0.9), True)
    assert isinstance(scheduler, lr_scheduler.LambdaLR)


@pytest.mark.parametrize("own", [None, partial(torch.optim.SGD, lr=0.4)])
def test_discriminator_optimizer_defaults_to_the_networks_one(own: Any) -> None:
    optimizers, schedulers = Optimization(ADAMW, lambda step: 0.5, discriminator_optimizer=own).make(
        parameters(*NETWORKS), parameters("d.weight")
    )
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    assert rates == ([0.05, 0.05] if own is None else [0.05, 0.2])
    assert isinstance(optimizers[1], torch.optim.AdamW if own is None else torch.optim.SGD)
    assert len(schedulers) == 2


def test_first_matching_group_is_used() -> None:
    groups = [
        {"match": "*", "max_dims": 1, "weight_decay": 0.0},
        {"match": ["model.coder.*", "d.*"], "lr": 0.3, "betas": [0.1, 0.2]},
        {"match": "model.*", "lr_factor": 0.1},
    ]
    settings = Optimization(partial(ADAMW, weight_decay=0.7), flat, parameter_groups=groups)
    networks, discriminator = settings.make(parameters(*NETWORKS, "other.weight"), parameters("d.weight"))[0]
    assert options(networks, "lr", "weight_decay", "betas") == [
        (1, 0.1, 0.7, (0.5, 0.9)),  # other.weight
        (1, 0.1, 0.0, (0.5, 0.9)),  # the bias
        (1, 0.3, 0.7, [0.1, 0.2]),  # the coder
        (1, pytest.approx(0.01), 0.7, (0.5, 0.9)),  # the encoder's weight
    ]
    assert options(discriminator, "lr") == [(1, 0.3)]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"lr": 0.1}, r"stage\.parameter_groups\[0\]\.match: give a pattern"),
        ({"match": "decoder.*"}, r"match=decoder\.\*: no parameter .* model\.encoder\.weight, "),
        ({"match": "*", "weigth_decay": 0}, r"AdamW has no option weigth_decay; it has lr_factor, lr, betas"),
    ],
)
def test_invalid_groups_are_refused(group: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Optimization(ADAMW, flat, parameter_groups=[group]).make(parameters(*NETWORKS), {})


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Rprop])
def test_other_optimizers_ignore_adamw_defaults(kind: type[torch.optim.Optimizer]) -> None:
    factory = partial(kind, lr=0.1, betas=[0.5, 0.9], weight_decay=0.0, fused=True)
    networks = parameters(*NETWORKS)
    (optimizer,), _ = Optimization(factory, flat).make(networks, {})
    for parameter in networks.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all((parameter < 1).all() for parameter in networks.values())


@pytest.mark.parametrize(
    ("key", "factory", "message"),
    [
        ("optimizer", partial(torch.optim.SGD, lr=0.1, momentun=0.9), r"momentun: SGD has no such option"),
        (
            "optimizer",
            partial(torch.optim.Rprop, weight_decay=0.1),
            r"weight_decay: Rprop has no such option",
        ),
        ("optimizer", partial(torch.optim.LBFGS, lr=0.1), r": LBFGS is not supported: .* needs closure"),
        ("discriminator_optimizer", partial(torch.optim.SGD, fused=True, betas=[0, 1]), r"betas: SGD has no"),
        ("schedule", partial(lr_scheduler.CosineAnnealingLR, total=5), r": CosineAnnealingLR: .*'T_max'"),
        ("schedule", partial(lr_scheduler.ReduceLROnPlateau), r": ReduceLROnPlateau .* needs metrics"),
        (
            "schedule",
            partial(lr_scheduler.StepLR, step=5),
            r"step: StepLR has no such option; it has step_size",
        ),
    ],
)
def test_unsupported_options_are_refused_at_construction(
    key: str, factory: partial[Any], message: str
) -> None:
    with pytest.raises(SettingError, match=rf"^stage\.{key}[.:]? ?.*{message}"):
        Optimization(**{"optimizer": ADAMW, "schedule": flat, key: factory})


def test_torch_schedulers_are_stepped_per_step() -> None:
    schedule = partial(
        lr_scheduler.LinearLR, start_factor=0.5, total_iters=2, warmup=9, total=9, hold=0.7, floor=0
    )
    (optimizer,), (scheduler,) = Optimization(ADAMW, schedule).make(parameters(*NETWORKS), {})
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.05, 0.075, 0.1])


def test_schedule_function_given_as_partial_is_refused() -> None:
    def factor(step: object, low: float) -> float:
        return low

    with pytest.raises(SettingError, match=r"stage\.schedule: factor returned a float, not a scheduler"):
        Optimization(ADAMW, partial(factor, low=0.1)).make(parameters(*NETWORKS), {})
