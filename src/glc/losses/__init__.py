"""Losses as modules that return named scalars: one value per picture `[B]`, or one per batch.

The names are the keys under which they are logged and weighted in the configuration.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of the named terms times their weights; terms of weight 0 take no part.

    With no weight other than 0 the sum is zero.

    Args:
        terms: name to value; shapes must broadcast.
        weights: name to weight; a term without a weight is only logged.

    Raises:
        KeyError: when a weight other than 0 names no term.
    """
    used = {name: weight for name, weight in weights.items() if weight != 0}
    missing = sorted(used.keys() - terms.keys())
    if missing:
        raise KeyError(f"no loss term named {', '.join(missing)}; there are {', '.join(sorted(terms))}")
    if not used:
        return torch.zeros_like(next(iter(terms.values())))
    first, *rest = [weight * terms[name] for name, weight in used.items()]
    return sum(rest, first)
