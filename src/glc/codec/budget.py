"""A limit on what building a network may allocate, checked before each allocation.

A weights file says what its network is, and may come from anywhere: a line of text could ask for more memory
than there is. The tensors in the file are the measure: a network that they fill is not much larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SPARE = 1 << 24
"""Elements that any network may have beyond those of its file: buffers, and what initialisation needs."""

_LEAST = 1024
"""What a tensor counts at least, for it takes time and memory however small it is."""

_SIZED = frozenset((torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full))


class OverBudgetError(ValueError):
    """A network would be larger than the tensors that are to fill it."""


class Budget(TorchFunctionMode):
    """While in the context, tensors are made only as long as their elements together stay within a limit.

    Args:
        elements: the limit.
    """

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.used = 0

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Budget:
        """Return what a network may allocate that the given tensors are to fill."""
        return cls(2 * sum(max(tensor.numel(), _LEAST) for tensor in tensors.values()) + SPARE)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count what is about to be made.

        Raises:
            OverBudgetError: it would be too much; nothing was allocated for it.
        """
        kwargs = kwargs or {}
        made = _elements(func, args, kwargs)
        self.used += 0 if made is None else max(made, _LEAST)
        if self.used > self.elements:
            raise OverBudgetError(
                f"it describes a network of more than {self.elements:,} numbers, which its file does not have"
            )
        return func(*args, **kwargs)


def _elements(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return how many elements a call makes, perhaps none; None where it makes no tensor from nothing."""
    if func in _SIZED:
        size = kwargs.get("size", args)
        if len(size) and isinstance(size[0], Sequence):
            size = size[0]
        return math.prod(n for n in size if isinstance(n, int))
    if func is torch.arange or func is torch.linspace:
        return int(max((abs(n) for n in args if isinstance(n, int | float)), default=0))
    if func is torch.eye:
        return math.prod([n for n in args if isinstance(n, int)] * (2 if len(args) == 1 else 1))
    return None
