"""Rebuild a model from its description, without running anything that the description names.

A limit on what building a network may allocate, checked before each allocation.

A weights file says what its network is, and may come from anywhere: a line of text could ask for more memory
than there is. The tensors in the file are the measure: a network that they fill is not much larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glc.codec.bitstream import MAX_RATES
from glc.models.autoencoder import Decoder, Encoder
from glc.models.code_predictor import CodePredictionRefiner, CodePredictor
from glc.models.coder import IndicesMapCoder, TransformCoder
from glc.models.context import QuadtreeContext
from glc.models.glc import GLC
from glc.models.hyperprior import CategoricalHyperprior, FactorizedHyperprior
from glc.models.quantizer import VectorQuantizer

TARGET = "_target_"

_PARTS: dict[str, type[nn.Module]] = {
    f"{part.__module__}.{part.__qualname__}": part
    for part in (
        GLC,
        Encoder,
        Decoder,
        TransformCoder,
        IndicesMapCoder,
        CategoricalHyperprior,
        FactorizedHyperprior,
        QuadtreeContext,
        VectorQuantizer,
        CodePredictor,
        CodePredictionRefiner,
    )
}


_KINDS: dict[str, tuple[type, ...]] = {
    "encoder": (Encoder,),
    "decoder": (Decoder,),
    "coder": (TransformCoder, IndicesMapCoder),
    "refiner": (CodePredictionRefiner, type(None)),
    "hyper": (CategoricalHyperprior, FactorizedHyperprior),
    "context": (QuadtreeContext,),
    "predictor": (CodePredictor,),
    "quantizer": (VectorQuantizer,),
}
"""What an argument must be that is a part itself."""


class ArchitectureError(ValueError):
    """A description does not describe a model that this version knows."""


def build(description: Any) -> Any:
    """Make the objects that a nested description names under `_target_`, innermost first.

    The format is that of the configuration, restricted to the parts of a codec: a file cannot name
    anything else.

    Args:
        description: mappings with `_target_` become objects; lists and plain values stay.

    Raises:
        ArchitectureError: for an unknown part, or arguments that it does not take.
    """
    if isinstance(description, list | tuple):
        return [build(item) for item in description]
    if not isinstance(description, Mapping):
        return description
    values = {key: build(value) for key, value in description.items() if key != TARGET}
    if TARGET not in description:
        return values
    name = description[TARGET]
    part = _PARTS.get(name) if isinstance(name, str) else None
    if part is None:
        raise ArchitectureError(f"{name!r} is no part of a codec known to this version of glc")
    for key, value in values.items():
        _check(name, key, value)
    try:
        return part(**values)
    except Exception as error:  # the arguments may be anything, and so may what they lead to
        raise ArchitectureError(f"{name}: {error}") from error


def _check(name: str, key: str, value: Any) -> None:
    """Refuse an argument that its part would take, for something else to trip over it."""
    kinds = _KINDS.get(key)
    if kinds is not None and not isinstance(value, kinds):
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ArchitectureError(f"{name}: its {key} must be {names}, not {type(value).__name__}")
    if key in ("window", "stem", "num_rates") and not (key == "window" and value is None):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArchitectureError(f"{name}: its {key} must be a whole number from 1, not {value!r:.40}")
        if key == "num_rates" and value > MAX_RATES:
            raise ArchitectureError(f"{name}: a codec has at most {MAX_RATES} rate points, not {value}")


def build_for(description: Any, tensors: Mapping[str, Tensor], share: bool = False) -> Any:
    """Build what a description names with given weights: nothing is allocated or drawn for others.

    Args:
        description: as `build` takes it.
        tensors: all of its state. Other types than the network's are converted.
        share: let them be the network's own tensors. Otherwise it gets copies.

    Raises:
        ArchitectureError: as in `build`, or when it is far larger than the tensors.
        RuntimeError: when the tensors are not those of the network; the message names them.
    """
    with torch.device("meta"), Budget.of(tensors):
        network = build(description)
    if not isinstance(network, nn.Module):
        return network
    types = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    state = {
        name: tensor.to(types.get(name, tensor.dtype), copy=not share) for name, tensor in tensors.items()
    }
    network.load_state_dict(state, assign=True)
    return network


def without_projections(description: Any) -> Any:
    """Return the description with every `projected` codebook made a plain one."""
    if isinstance(description, list | tuple):
        return [without_projections(item) for item in description]
    if not isinstance(description, Mapping):
        return description
    return {
        key: False if key == "projected" else without_projections(value) for key, value in description.items()
    }


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
