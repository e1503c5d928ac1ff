"""Which rate points a batch sees, and their lambdas."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def lambdas(values: float | Sequence[float], num_rates: int) -> Tensor:
    """Return one lambda per rate point `[K]` from one value for all or a list.

    Raises:
        ValueError: when the list has another length, or a value is not positive and finite.
    """
    listed = list(values) if isinstance(values, Sequence) else [values] * num_rates
    if len(listed) != num_rates:
        raise ValueError(
            f"stage.lmbda has {len(listed)} values for the model's {num_rates} rate points: "
            f"give one value, or {num_rates} (model.num_rates)"
        )
    if not all(0 < value < math.inf for value in listed):
        raise ValueError(f"stage.lmbda must be positive and finite, got {listed}")
    return torch.tensor([float(value) for value in listed])


def draw_rates(
    batch_size: int, num_rates: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a rate point for each picture `[B]`, int64, such that all points are equally frequent in a batch.

    A batch smaller than the number of points sees that many different ones.
    """
    rounds = -(-batch_size // num_rates)
    points = torch.cat([torch.randperm(num_rates, generator=generator) for _ in range(rounds)])
    points = points[:batch_size]
    if device.type == "cuda":
        # From pinned memory the copy goes on by itself; from any other the step would wait for it.
        return points.pin_memory().to(device, non_blocking=True)
    return points.to(device)
