"""Detect the third-party layout of a file, and return the networks in it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glc.codec.convert.layouts import LAYOUTS, FittedLayout
from glc.codec.convert.read import Source
from glc.codec.weights.state import strip_prefix
from glc.errors import ArchitectureError, WeightsError

KINDS = tuple(LAYOUTS)

CODEC = "glc.models.glc.GLC"
AUTOENCODER = "glc.models.autoencoder.VQAutoencoder"
_OURS = {CODEC: ("encoder", "decoder", "coder", "refiner"), AUTOENCODER: ("encoder", "decoder", "quantizer")}


@dataclass(frozen=True)
class ThirdPartyFile:
    """A file in a third-party layout."""

    source: Source
    layout: FittedLayout

    @property
    def networks(self) -> list[str]:
        """Names of the networks that it holds."""
        return self.layout.present(self.source.tensors)

    @property
    def ignored(self) -> list[str]:
        """Names of the tensors that belong to no network."""
        return [name for name in self.source.tensors if name not in self.layout.entries]

    def states(self, networks: Iterable[str] | None = None) -> dict[str, dict[str, Tensor]]:
        """Return the state dicts of the networks, in float32; float32 tensors are not copied.

        Args:
            networks: names of the networks to return; all by default.

        Raises:
            WeightsError: a tensor is not floating-point, or not finite.
        """
        wanted = list(self.networks if networks is None else networks)
        entries = self.layout.entries
        used = {
            name: _usable(self.source.path, name, tensor)
            for name, tensor in self.source.tensors.items()
            if name in entries and entries[name].network in wanted
        }
        return self.layout.to_networks(used, wanted)


def _usable(path: Path, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or not tensor.isfinite().all():
        raise WeightsError(f"{path}: corrupt file: {name} has values that are not finite real numbers")
    return tensor.detach().float()


def recognize(source: Source, kind: str = "auto") -> ThirdPartyFile:
    """Detect the third-party layout of a file and check that it fits.

    Args:
        kind: one of `KINDS`, or `auto` to detect it by the names of the tensors.

    Raises:
        WeightsError: the layout is unknown, or tensors are missing, unexpected or of another shape.
    """
    names = source.tensors
    if kind == "auto":
        kinds = (k for k, layout in LAYOUTS.items() if any(name.startswith(layout.signs) for name in names))
        found = next(kinds, None)
        if found is None:
            raise WeightsError(
                f"{source.path}: unknown layout (supported: {', '.join(KINDS)}, and checkpoints of glc); "
                f"the first of its {len(names)} tensors: {', '.join(sorted(names)[:3])}"
            )
        kind = found
    try:
        layout = LAYOUTS[kind].read(source.shapes)
    except (ArchitectureError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{source.path}: the shapes do not fit a {kind} network ({error})") from error
    problem = layout.difference(source.shapes)
    if problem:
        raise WeightsError(f"{source.path}: not a {layout.table.title}: {problem}")
    return ThirdPartyFile(source, layout)


def foreign_networks(source: Source) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Return the networks in a file that is not a training checkpoint of glc, and the file's title.

    Args:
        source: a file in a third-party layout, or a weights file of glc (a codec or a stage-I autoencoder).

    Returns:
        The state dicts of the networks in the file (any of `encoder`, `decoder`, `quantizer`, `coder`,
        `predictor`, `pixel_predictor` and `refiner`), and the file's title for messages.

    Raises:
        WeightsError: it is neither.
    """
    if source.ours:
        raise WeightsError(f"{source.path}: a training checkpoint of glc, not third-party weights")
    described = own_description(source)
    if described is None:
        recognized = recognize(source)
        return recognized.states(), f"a {recognized.layout.table.title}"
    target = described.get("_target_")
    names = _OURS.get(target) if isinstance(target, str) else None
    if names is None:
        raise WeightsError(f"{source.path}: describes {target!r}, neither a codec nor an autoencoder")
    tensors = {name: t.float() if t.dtype is torch.float16 else t for name, t in source.tensors.items()}
    states = {name: strip_prefix(tensors, name) for name in names}
    title = "a codec's weights file" if target == CODEC else "a stage-I autoencoder"
    return {name: state for name, state in states.items() if state}, title


def own_description(source: Source) -> Mapping[str, Any] | None:
    """Return the architecture in a weights file of glc; None for any other file.

    Raises:
        WeightsError: its metadata cannot be read.
    """
    if "model" not in source.metadata:
        return None
    try:
        described = json.loads(source.metadata["model"])
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{source.path}: the metadata key 'model' cannot be read ({error})") from error
    if not isinstance(described, Mapping):
        raise WeightsError(f"{source.path}: the metadata key 'model' does not describe a network")
    return described
