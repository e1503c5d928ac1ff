"""Weights files by name, bundled with glc or in the user's folder: codecs and their variants.

A variant is an encoder or a decoder that replaces a codec's own, in a weights file for that codec.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from glc import pretrained
from glc.codec.weights.architecture import check_network
from glc.codec.weights.file import Kind, VariantLabel, Weights, open_weights, read_label, save
from glc.codec.weights.mmap import MappedFile
from glc.codec.weights.trust import Trust
from glc.errors import ArchitectureError, WeightsError
from glc.models.glc import GLC

if TYPE_CHECKING:
    from glc.codec.codec import Codec


DEFAULT_MODEL = "small"
FOLDER_VARIABLE = "GLC_MODELS"
"""Environment variable: a folder of additional weights files, found by name."""

_SUFFIX = ".safetensors"
_KINDS = ("encoder", "decoder", "training")
"""`NAME.encoder.safetensors` is not a codec's file: see `glc.codec.weights.file`."""

_TRAINED_BY = {
    "model": "a training run",
    "encoder": "a run of stage=restoration",
    "decoder": "a run of stage=stylization",
}


def catalog(kind: str = "model") -> dict[str, Path]:
    """Return the weights files of a kind by name; the user's take precedence over the bundled ones."""
    folders = [Path(path) for path in pretrained.__path__]
    if os.environ.get(FOLDER_VARIABLE):
        folders.append(Path(os.environ[FOLDER_VARIABLE]))
    found = {}
    for file in (file for folder in folders for file in sorted(folder.glob(f"*{_SUFFIX}"))):
        name, _, ending = file.stem.rpartition(".")
        of = ending if name and ending in _KINDS else "model"
        if of == kind:
            found[file.stem if kind == "model" else name] = file
    return dict(sorted(found.items()))


def find(name: str | Path, kind: str = "model") -> Path:
    """Return the path of a weights file.

    Args:
        name: a file, or a name in `catalog(kind)`.
        kind: `model` (a codec), `encoder` or `decoder`.

    Raises:
        WeightsError: it is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    files = catalog(kind)
    if str(name) in files:
        return files[str(name)]
    if path.is_dir():
        raise WeightsError(
            f"{path}: a folder, not a weights file; `glc export` writes one from {_TRAINED_BY[kind]}"
        )
    if path.suffix or len(path.parts) > 1:
        raise WeightsError(f"{path}: no such weights file")
    names = f"available: {', '.join(files)}" if files else "none is available by name"
    raise WeightsError(
        f"there is no {kind} {str(name)!r} ({names}); give a weights file: `glc export` writes one from "
        f"{_TRAINED_BY[kind]}"
    )


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


def encoders(codec: "Codec") -> dict[str, Path]:
    """Return the files of the encoder variants of a codec, by name."""
    return made_for(codec.weights.fingerprint, "encoder")


def decoders(codec: "Codec") -> dict[str, Path]:
    """Return the files of the decoder variants of a codec, by name."""
    return made_for(codec.weights.fingerprint, "decoder")


def made_for(fingerprint: str, kind: Kind) -> dict[str, Path]:
    """Return the files of the variants of a kind for the codec with a fingerprint, by name."""
    found = {}
    for name, file in catalog(kind).items():
        try:
            label = read_label(file)
        except WeightsError:
            continue  # opening the file by name reports the error
        if isinstance(label, VariantLabel) and (label.kind, label.fingerprint) == (kind, fingerprint):
            found[name] = file
    return found
