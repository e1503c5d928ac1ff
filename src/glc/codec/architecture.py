"""Rebuild a model from its description, without running anything that the description names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glc.codec.bitstream import MAX_RATES
from glc.codec.budget import Budget
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
