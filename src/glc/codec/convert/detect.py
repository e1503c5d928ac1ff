"""Which published layout a file has, and our networks in it."""

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
class Published:
    """A file in a published layout."""

    source: Source
    layout: FittedLayout

    @property
    def networks(self) -> list[str]:
        """Names of our networks that it holds."""
        return self.layout.present(self.source.tensors)

    @property
    def ignored(self) -> list[str]:
        """Names of the tensors that belong to none of them."""
        return [name for name in self.source.tensors if name not in self.layout.entries]

    def states(self, networks: Iterable[str] | None = None) -> dict[str, dict[str, Tensor]]:
        """Return the states of our networks, in float32; nothing is copied that is float32 already.

        Args:
            networks: the ones to return; all by default.

        Raises:
            WeightsError: when a tensor holds no numbers that a network could use.
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
        raise WeightsError(f"{path}: {name} is not made of finite real numbers: the file is damaged")
    return tensor.detach().float()


def recognize(source: Source, kind: str = "auto") -> Published:
    """Find the published layout of a file and check that it fits.

    Args:
        source: the file.
        kind: one of `KINDS`, or `auto` to go by the names of the tensors.

    Raises:
        WeightsError: when the layout is unknown, or tensors are missing, unexpected or of another shape.
    """
    names = source.tensors
    if kind == "auto":
        kinds = (k for k, layout in LAYOUTS.items() if any(name.startswith(layout.signs) for name in names))
        found = next(kinds, None)
        if found is None:
            raise WeightsError(
                f"{source.path}: no layout that glc knows ({', '.join(KINDS)}, or a checkpoint of its own): "
                f"its {len(names)} tensors begin with {', '.join(sorted(names)[:3])}"
            )
        kind = found
    try:
        layout = LAYOUTS[kind].read(source.shapes)
    except (ArchitectureError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{source.path}: no {kind} network has such shapes ({error})") from error
    problem = layout.difference(source.shapes)
    if problem:
        raise WeightsError(f"{source.path}: not a {layout.table.title}: {problem}")
    return Published(source, layout)


def foreign_networks(source: Source) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Return our networks in a file that is no checkpoint of glc's training, and what the file is.

    Args:
        source: a file in a published layout, or a weights file of glc: of a codec or a stage-I auto-encoder.

    Returns:
        Of the networks `encoder`, `decoder`, `quantizer`, `coder`, `predictor`, `pixel_predictor` (that of
        images' codes) and `refiner` the states of those that the file holds; and a few words for messages.

    Raises:
        WeightsError: when it is none of these.
    """
    if source.ours:
        raise WeightsError(f"{source.path}: a checkpoint of glc's training, not published weights")
    described = own_description(source)
    if described is None:
        published = recognize(source)
        return published.states(), f"a {published.layout.table.title}"
    target = described.get("_target_")
    names = _OURS.get(target) if isinstance(target, str) else None
    if names is None:
        raise WeightsError(f"{source.path}: describes {target!r}, neither a codec nor an auto-encoder")
    tensors = {name: t.float() if t.dtype is torch.float16 else t for name, t in source.tensors.items()}
    states = {name: strip_prefix(tensors, name) for name in names}
    title = "a codec's weights file" if target == CODEC else "a stage-I auto-encoder"
    return {name: state for name, state in states.items() if state}, title


def own_description(source: Source) -> Mapping[str, Any] | None:
    """Return the architecture in a weights file of glc; None for any other file.

    Raises:
        WeightsError: when it cannot be read.
    """
    if "model" not in source.metadata:
        return None
    try:
        described = json.loads(source.metadata["model"])
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{source.path}: its metadata 'model' cannot be read ({error})") from error
    if not isinstance(described, Mapping):
        raise WeightsError(f"{source.path}: its metadata 'model' describes no model")
    return described
