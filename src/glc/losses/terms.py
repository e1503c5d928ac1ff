"""Named loss terms: losses added to a stage, and the weighted sum of terms.

A loss is a module that returns `{name: value}`, one value per image `[B]` or a scalar. Terms are logged and
weighted under these names: every term has a weight, and a weight of 0 only logs the term.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from glc.errors import SettingError


class AddedLosses(nn.ModuleDict):
    """The losses that the configuration adds to those of a stage (`stage.losses`).

    Args:
        losses: name to module; None omits a loss. The names are for messages; terms have their own names.

    Raises:
        SettingError: an entry is not a module.
    """

    def __init__(self, losses: Mapping[str, nn.Module | None] | None = None) -> None:
        given = {name: loss for name, loss in (losses or {}).items() if loss is not None}
        for name, loss in given.items():
            if not isinstance(loss, nn.Module):
                raise SettingError(f"stage.losses.{name}: is a {type(loss).__name__}; give a torch module")
        super().__init__(given)

    def forward(self, terms: Mapping[str, Tensor], *compared: Tensor) -> dict[str, Tensor]:
        """Return the stage's own terms with those of the added losses.

        Args:
            terms: the stage's own.
            *compared: inputs of every loss: target and estimate `[B, ...]`, images or latents.

        Raises:
            SettingError: a loss returns no terms, or a name that exists already.
        """
        found = dict(terms)
        for name, loss in self.items():
            added = loss(*compared)
            if not isinstance(added, Mapping):
                raise SettingError(
                    f"stage.losses.{name}: returned a {type(added).__name__}; "
                    "return terms by name, {name: value}"
                )
            for term, value in added.items():
                if term in found:
                    raise SettingError(f"stage.losses.{name}: the term {term} exists already; rename it")
                if not isinstance(value, Tensor) or value.shape not in ((), (len(compared[0]),)):
                    got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise SettingError(
                        f"stage.losses.{name}: {term} is {got}; "
                        f"return a tensor with one value per image, [{len(compared[0])}], or a scalar"
                    )
                found[term] = value
        return found


def weighted_sum(
    terms: Mapping[str, Tensor], weights: Mapping[str, float], key: str = "stage.weights"
) -> Tensor:
    """Return the weighted sum of named terms; terms of weight 0 are skipped.

    If all weights are 0, the sum is zero.

    Args:
        terms: name to value; shapes must broadcast.
        weights: name to weight, one for each term.
        key: the configuration key of the weights, for messages.

    Raises:
        SettingError: a weight without a term, or a term without a weight.
    """
    unknown = [name for name in weights if name not in terms]
    if unknown:
        known = ", ".join(sorted(terms)) or "none"
        raise SettingError(f"{key}.{unknown[0]}: no such loss term; the terms are {known}")
    missing = [name for name in terms if name not in weights]
    if missing:
        known = ", ".join(weights) or "none"
        raise SettingError(
            f"{key}.{missing[0]}: this loss term has no weight; give one (0 only logs the term). "
            f"There are weights for {known}"
        )
    used = {name: weight for name, weight in weights.items() if weight != 0}
    if not used:
        return torch.zeros_like(next(iter(terms.values())))
    first, *rest = [weight * terms[name] for name, weight in used.items()]
    return sum(rest, first)
