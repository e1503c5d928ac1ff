"""Build a model from the description in a weights file of untrusted origin.

A description may name classes of glc only, unless the caller trusts another package (see
`glc.codec.weights.trust`). Memory is limited to a multiple of the size of the file's tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glc.codec.bitstream import MAX_RATES
from glc.codec.weights.trust import Trust, build_nested, find_class
from glc.errors import ArchitectureError, OverBudgetError
from glc.models.autoencoder import Decoder, Encoder
from glc.models.code_predictor import CodePredictionRefiner, CodePredictor
from glc.models.coder import IndicesMapCoder, TransformCoder
from glc.models.context import QuadtreeContext
from glc.models.gate import QuantizationGate
from glc.models.glc import GLC
from glc.models.hyperprior import CategoricalHyperprior, FactorizedHyperprior
from glc.models.protocols import require
from glc.models.quantizer import FiniteScalarQuantizer, VectorQuantizer

_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "encoder": (Encoder,),
    "decoder": (Decoder,),
    "coder": (TransformCoder, IndicesMapCoder),
    "hyper": (CategoricalHyperprior, FactorizedHyperprior),
    "context": (QuadtreeContext,),
    "gate": (QuantizationGate,),
    "quantizer": (VectorQuantizer, FiniteScalarQuantizer),
    "refiner": (CodePredictionRefiner,),
    "predictor": (CodePredictor,),
}
"""Arguments that are networks, and the classes of glc for them. Networks that accept user-defined classes
check that these have the members required by `glc.models.protocols`."""

_NETWORKS: list[type[nn.Module]] = [GLC, *(network for networks in _KINDS.values() for network in networks)]
_OURS = {f"{network.__module__}.{network.__qualname__}": network for network in _NETWORKS}
"""Classes that a file may name without trust."""


def build(description: Any, trust: Trust = ()) -> Any:
    """Build the networks that a nested description names under `_target_`, innermost first.

    Args:
        description: mappings with `_target_` become networks; lists and plain values are kept.
        trust: packages besides glc whose classes it may name; see `glc.codec.weights.trust`.

    Raises:
        ArchitectureError: it names a class that is neither of glc nor of a trusted package, or arguments that
            the class does not accept.
    """
    return _build(description, _classes(description, trust))


def build_for(description: Any, tensors: Mapping[str, Tensor], share: bool = False, trust: Trust = ()) -> Any:
    """Build a described network with given weights, with memory limited by their size.

    Args:
        tensors: the complete state. Tensors of another dtype than the network's are converted.
        share: use them as the network's own tensors, without a copy.

    Raises:
        ArchitectureError: see `build`.
        OverBudgetError: the network is far larger than the tensors.
        RuntimeError: the tensors do not match the network; the message names them.
    """
    classes = _classes(description, trust)
    with _empty(classes), Budget.of(tensors):
        network = _build(description, classes)
    if not isinstance(network, nn.Module):
        return network
    types = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    state = {
        name: tensor.to(types.get(name, tensor.dtype), copy=not share) for name, tensor in tensors.items()
    }
    network.load_state_dict(state, assign=True)
    return network


def bake_projections(model: nn.Module, description: Any) -> Any:
    """Bake the projected codebooks of a model, in place; return its updated description."""
    for module in model.modules():
        if isinstance(module, VectorQuantizer):
            module.bake()
    return _without_projections(description)


def _without_projections(description: Any) -> Any:
    if isinstance(description, list | tuple):
        return [_without_projections(item) for item in description]
    if not isinstance(description, Mapping):
        return description
    return {
        key: False if key == "projected" else _without_projections(value)
        for key, value in description.items()
    }


def _classes(description: Any, trust: Trust) -> dict[str, type[nn.Module]]:
    """Return the classes that a description names, by name; import those of trusted packages."""
    names: list[Any] = []
    build_nested(description, lambda name, _: names.append(name))
    for name in names:
        if not isinstance(name, str):
            raise ArchitectureError(f"{name!r} is not the name of a network")
    return {name: _OURS.get(name) or find_class(name, trust) for name in names}


@contextmanager
def _empty(classes: Mapping[str, type[nn.Module]]) -> Iterator[None]:
    """Build networks without allocating or initialising weights, which are loaded later."""
    if all(name in _OURS for name in classes):
        with torch.device("meta"):
            yield
    else:  # a user's network may compute tensors that are not in its state dict
        with torch.random.fork_rng(devices=[]):
            yield


def _build(description: Any, classes: Mapping[str, type[nn.Module]]) -> Any:
    def make(name: str, values: dict[str, Any]) -> Any:
        network = classes[name]
        if issubclass(network, tuple(_NETWORKS)):  # other classes check their own arguments
            for key, value in values.items():
                _check(name, key, value)
        try:
            return network(**values)
        except Exception as error:  # arbitrary arguments may raise any error
            raise ArchitectureError(f"{name}: {error}") from error

    return build_nested(description, make)


def check_network(owner: str, key: str, value: Any) -> None:
    """Check that a value can be the network of an argument: a class of glc, or one that fits its protocol.

    Args:
        owner: the class or file that has the argument, for messages.
        key: a key of `_KINDS`, such as `encoder`.

    Raises:
        ArchitectureError: it has another type, or lacks members of the protocol.
    """
    ours = _KINDS[key]
    optional = key in ("refiner", "gate")
    if isinstance(value, ours) or (optional and value is None):
        return
    if not isinstance(value, nn.Module) or type(value) in _NETWORKS:
        names = " or ".join([kind.__name__ for kind in ours] + ["null"] * optional)
        raise ArchitectureError(f"{owner}: its {key} must be {names}, not {type(value).__name__}")
    if key in ("encoder", "decoder"):
        try:
            require(value, key, "latent_channels", "downsampling")
        except ValueError as error:
            raise ArchitectureError(f"{owner}: {error}") from error


def _check(name: str, key: str, value: Any) -> None:
    """Refuse an argument that the class itself accepts but that fails later."""
    if key in _KINDS:
        check_network(name, key, value)
    if key in ("window", "stem", "num_rates") and not (key == "window" and value is None):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArchitectureError(f"{name}: its {key} must be a positive integer, not {value!r:.40}")
        if key == "num_rates" and value > MAX_RATES:
            raise ArchitectureError(f"{name}: a codec has at most {MAX_RATES} rate points, not {value}")


SPARE = 1 << 24
"""Elements that a network may have beyond those of its file: buffers and temporaries of initialisation."""

_LEAST = 1024
"""Minimum count of a tensor, because even an empty one takes time and memory."""

_SIZED = frozenset((torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full))


class Budget(TorchFunctionMode):
    """Limit the total number of elements of tensors that are created within the context.

    A line of text in a weights file could request any amount of memory. The tensors in the file give the
    limit: the network that they belong to is not much larger.
    """

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.used = 0

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Budget:
        """Return the budget of the network that the given tensors belong to."""
        return cls(2 * sum(max(tensor.numel(), _LEAST) for tensor in tensors.values()) + SPARE)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count the elements of a call before it runs.

        Raises:
            OverBudgetError: the limit is exceeded; nothing was allocated for this call.
        """
        kwargs = kwargs or {}
        made = _elements(func, args, kwargs)
        self.used += 0 if made is None else max(made, _LEAST)
        if self.used > self.elements:
            raise OverBudgetError(
                f"describes a network of more than {self.elements:,} elements, more than its file has"
            )
        return func(*args, **kwargs)


def _elements(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return the number of elements that a call creates; None if it is not a factory function."""
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
