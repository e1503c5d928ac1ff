"""Variants: an encoder or a decoder that replaces a codec's own, in a weights file for that codec."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glc.codec.weights.architecture import check_network
from glc.codec.weights.file import Weights, open_weights, save
from glc.codec.weights.labels import Kind, VariantLabel
from glc.codec.weights.mmap import MappedFile
from glc.codec.weights.trust import Trust
from glc.errors import ArchitectureError, WeightsError
from glc.models.glc import GLC


@dataclass(frozen=True)
class Variant:
    """An encoder or decoder variant of one codec."""

    label: VariantLabel
    network: nn.Module
    """In evaluation mode, on the CPU, float32."""
    source: str
    """Its file."""
    files: tuple[MappedFile, ...] = ()
    """See `Weights`."""


def save_variant(
    path: str | Path,
    kind: Kind,
    state: Mapping[str, Tensor],
    description: Mapping[str, Any],
    fingerprint: str,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a variant's file atomically; see `VariantLabel` for the arguments."""
    save(path, state, VariantLabel(kind, description, fingerprint, about or {}))


def read_variant(path: str | Path, kind: Kind, mapped: bool = False, trust: Trust = ()) -> Variant:
    """Read a variant's file; see `glc.codec.weights.file.read_weights` for `mapped` and `trust`.

    Raises:
        WeightsError: the file is missing, corrupt, of a newer format, or of another kind.
    """
    wanted = "an encoder" if kind == "encoder" else "a decoder"
    opened = open_weights(path, VariantLabel, wanted, mapped)
    label = opened.label
    if label.kind != kind:
        raise opened.header.error(f"is not {wanted} but {label.USE.format(self=label)}")
    network = opened.build(label.description, trust)
    try:
        check_network(str(path), kind, network)
    except ArchitectureError as error:
        raise WeightsError(str(error)) from error
    network.eval().requires_grad_(False)
    return Variant(label, network, str(path), opened.files)


def attach(weights: Weights, *variants: Variant) -> Weights:
    """Return a codec's weights with its encoder or decoder replaced by variants.

    Args:
        weights: the codec; not changed.
        variants: at most one encoder and one decoder.

    Raises:
        WeightsError: a variant was made for another codec, or does not fit this one.
    """
    networks: dict[str, Any] = {"encoder": weights.model.encoder, "decoder": weights.model.decoder}
    for variant in variants:
        kind, made_for_codec = variant.label.kind, variant.label.fingerprint
        if made_for_codec != weights.fingerprint:
            raise WeightsError(
                f"{variant.source}: {kind} for the codec {made_for_codec[:8]}; {weights.source} is "
                f"{weights.fingerprint[:8]}: select that codec with --model, or train a variant for this one"
            )
        own = networks[kind]
        for name in ("latent_channels", "downsampling"):
            if getattr(variant.network, name) != getattr(own, name):
                raise WeightsError(
                    f"{variant.source}: its {name} is {getattr(variant.network, name)}, "
                    f"the codec's {getattr(own, name)}"
                )
        networks[kind] = variant.network
    model = GLC(**networks, coder=weights.model.coder, refiner=weights.model.refiner)
    files = sum((variant.files for variant in variants), weights.files)
    return replace(weights, model=model.eval(), files=files)
