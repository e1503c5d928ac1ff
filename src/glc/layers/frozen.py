"""A network that is used during training but not trained."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """Wraps a frozen module without registering it as a submodule.

    `state_dict()`, `parameters()`, `requires_grad_()` and `train()` of this module and of its parents do not
    include it. So it stays frozen and in evaluation mode, and optimizers, gradient synchronisation, EMA and
    checkpoints skip it. Device moves apply to it; dtype changes do not, since weights rounded to half
    precision could not be restored. Gradients flow through it to its inputs.

    Args:
        module: set to evaluation mode and frozen in place.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._hidden = (module.requires_grad_(False).eval(),)  # a tuple is not registered as a child
        tensor = next(module.parameters(), next(module.buffers(), None))
        self._device = torch.device("cpu") if tensor is None else tensor.device

    @property
    def module(self) -> nn.Module:
        """The frozen module."""
        return self._hidden[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the frozen module."""
        return self.module(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # All device moves call _apply. An empty tensor shows the target device.
        device = fn(torch.empty(0, device=self._device)).device
        if device != self._device:
            self.module.to(device=device)
            self._device = device
        return super()._apply(fn, recurse)
