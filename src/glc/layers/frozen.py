"""A network that is used but takes no part in training."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """Holds a module that only computes, out of sight of everything that parents do with their parameters.

    The module inside is no child in torch's sense: `state_dict()`, `parameters()`, `requires_grad_()` and
    `train()` of this module and of its parents do not reach it. So it stays frozen and in evaluation
    mode, and no optimizer, gradient synchronisation, moving average or checkpoint holds it. Moves such as
    `.to(device)` do reach it, changes of dtype do not: weights rounded to half precision could not be
    restored. Gradients flow through it to its inputs.

    Args:
        module: frozen and put into evaluation mode here; owned from then on.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._hidden = (module.requires_grad_(False).eval(),)  # a tuple is not registered as a child
        tensor = next(module.parameters(), next(module.buffers(), None))
        self._device = torch.device("cpu") if tensor is None else tensor.device

    @property
    def module(self) -> nn.Module:
        """The module inside."""
        return self._hidden[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module inside."""
        return self.module(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Every move of a module ends here; an empty tensor tells where this one goes.
        device = fn(torch.empty(0, device=self._device)).device
        if device != self._device:
            self.module.to(device=device)
            self._device = device
        return super()._apply(fn, recurse)
