"""Encoders and decoders that take the place of a codec's own: weights files of one network.

| metadata           | content                                                                     |
|--------------------|-----------------------------------------------------------------------------|
| `format`           | version of this layout                                                      |
| `part`             | `encoder` or `decoder`                                                      |
| `model`            | JSON: the network's architecture, as `glc.codec.weights.architecture.build` takes it |
| `fingerprint`      | that of the codec which it was made for                                     |
| `part_fingerprint` | SHA-256 of this network: architecture and tensors                           |
| `about`            | JSON: what it was trained for; for people                                   |

Neither changes what a `.glc` file means. Another encoder chooses other symbols, which the codec codes as it
codes its own; another decoder draws the same symbols differently. So files keep the codec's fingerprint.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from glc.codec.weights.architecture import ArchitectureError, build_for
from glc.codec.weights.catalog import parts as known_parts
from glc.codec.weights.file import Weights
from glc.codec.weights.mmap import MappedFile, open_tensors
from glc.errors import WeightsError
from glc.io.atomic import replacing
from glc.io.checkpoint import Checkpoint, open_checkpoint
from glc.models.autoencoder import Decoder, Encoder
from glc.models.glc import GLC

if TYPE_CHECKING:
    from glc.codec.codec import Codec

FORMAT = 1
"""Version of the layout of such files."""

Kind = Literal["encoder", "decoder"]
_CLASSES: dict[Kind, type[Encoder] | type[Decoder]] = {"encoder": Encoder, "decoder": Decoder}


@dataclass(frozen=True)
class Part:
    """An encoder or a decoder for one codec."""

    kind: Kind
    network: Encoder | Decoder
    """In evaluation mode, on the CPU, float32."""
    fingerprint: str
    """Of the codec that it was made for, 64 hexadecimal digits."""
    about: Mapping[str, Any] = field(default_factory=dict)
    source: str = "the weights"
    """What to call them in messages: their file."""
    files: tuple[MappedFile, ...] = ()
    """See `Weights`."""


@dataclass(frozen=True)
class PartLabel:
    """What a file says of itself; nothing of it is verified before the file is read."""

    kind: Kind
    fingerprint: str
    about: Mapping[str, Any]


def save_part(
    path: str | Path,
    kind: Kind,
    state: Mapping[str, Tensor],
    description: Mapping[str, Any],
    fingerprint: str,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a part's file under another name and rename it when it is whole.

    Args:
        path: the file.
        kind: what the network replaces.
        state: its tensors.
        description: its architecture.
        fingerprint: of the codec that it was made for.
        about: what it was trained for, as plain values.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    metadata = {
        "format": str(FORMAT),
        "part": kind,
        "model": json.dumps(description, sort_keys=True),
        "fingerprint": fingerprint,
        "part_fingerprint": _digest(tensors, description),
        "about": json.dumps(dict(about or {}), sort_keys=True),
    }
    with replacing(Path(path)) as partial:
        save_file(tensors, partial, metadata)


def read_label(path: str | Path) -> PartLabel:
    """Return what a file says of itself, without reading its tensors.

    Raises:
        WeightsError: when it is missing, damaged, of a newer format, or no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _label(path, file.metadata() or {})
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from error


def read_part(path: str | Path, kind: Kind, mapped: bool = False) -> Part:
    """Read a part's file; `mapped` is explained at `glc.codec.weights.file.read_weights`.

    Raises:
        WeightsError: when the file is missing, damaged, of a newer format, or no part of this kind.
    """
    metadata, tensors, files = open_tensors(path, mapped)
    label = _label(path, metadata)
    if label.kind != kind:
        raise WeightsError(f"{path}: holds {_an(label.kind)}, not {_an(kind)}: use it as --{label.kind}")
    description = _parse(path, metadata, "model")
    if _digest(tensors, description) != metadata.get("part_fingerprint"):
        raise WeightsError(f"{path}: damaged: the content does not have the checksum that it states")
    for file in files:
        file.release()
    try:
        network = build_for(description, tensors, share=bool(files))
    except (ArchitectureError, RecursionError) as error:
        raise WeightsError(f"{path}: {error}") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path}: the weights do not fit their description: {reason}") from error
    if not isinstance(network, _CLASSES[kind]):
        raise WeightsError(f"{path}: describes {type(network).__name__}, not {_an(kind)}")
    network.eval().requires_grad_(False)
    return Part(kind, network, label.fingerprint, label.about, str(path), files)


def attach(weights: Weights, *parts: Part) -> Weights:
    """Return a codec's weights with parts in the place of its own networks.

    Args:
        weights: the codec; not changed.
        parts: at most one encoder and one decoder.

    Raises:
        WeightsError: when a part was made for another codec, or does not fit this one.
    """
    networks: dict[str, Any] = {"encoder": weights.model.encoder, "decoder": weights.model.decoder}
    for part in parts:
        if part.fingerprint != weights.fingerprint:
            raise WeightsError(
                f"{part.source}: {_an(part.kind)} for the codec {part.fingerprint[:8]}, and {weights.source} "
                f"is {weights.fingerprint[:8]}: choose that codec with --model, or train one for this codec"
            )
        own = networks[part.kind]
        for name in ("latent_channels", "downsampling"):
            if getattr(part.network, name) != getattr(own, name):
                raise WeightsError(
                    f"{part.source}: its {name} is {getattr(part.network, name)}, "
                    f"the codec's {getattr(own, name)}"
                )
        networks[part.kind] = part.network
    model = GLC(**networks, coder=weights.model.coder, refiner=weights.model.refiner)
    files = sum((part.files for part in parts), weights.files)
    return replace(weights, model=model.eval(), files=files)


def encoders(codec: "Codec") -> dict[str, Path]:
    """Return the files of the encoders that were made for a codec, by the names by which they are known."""
    return made_for(codec.weights.fingerprint, "encoder")


def decoders(codec: "Codec") -> dict[str, Path]:
    """Return the files of the decoders that were made for a codec, by the names by which they are known."""
    return made_for(codec.weights.fingerprint, "decoder")


def made_for(fingerprint: str, kind: Kind) -> dict[str, Path]:
    """Return the files of the parts of a kind that were made for the codec of a fingerprint, by name."""
    found = {}
    for name, file in known_parts(kind).items():
        try:
            label = read_label(file)
        except WeightsError:
            continue  # the commands say what is wrong with a file that is asked for
        if label.kind == kind and label.fingerprint == fingerprint:
            found[name] = file
    return found


def export_part(source: str | Path | Checkpoint, destination: str | Path, half: bool = False) -> None:
    """Write the part that a stage of applications trained, its averaged weights, as a file.

    Args:
        source: a checkpoint of stage=restoration or stage=stylization.
        destination: the file.
        half: store the weights in half precision.

    Raises:
        WeightsError: when the checkpoint holds no part, or half precision cannot hold it.
    """
    opened = open_checkpoint(source)
    checkpoint, part = opened.path, opened.content["glc"].get("part")
    if not isinstance(part, Mapping) or part.get("kind") not in get_args(Kind):
        raise WeightsError(f"{checkpoint}: holds no encoder or decoder of its own")
    prefix = f"{part['kind']}."
    state = {k[len(prefix) :]: v for k, v in opened.state_dict.items() if k.startswith(prefix)}
    if half:
        state = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
        for name, tensor in state.items():
            if not tensor.isfinite().all():
                raise WeightsError(f"{checkpoint}: {name} does not fit half precision; export without --half")
    settings = {"stage": opened.stage, "degradation": opened.settings.get("degradation")}
    about = {key: value for key, value in settings.items() if value is not None} | part.get("about", {})
    save_part(destination, part["kind"], state, part["description"], part["fingerprint"], about)


def _label(path: str | Path, metadata: Mapping[str, str]) -> PartLabel:
    kind = metadata.get("part")
    if kind not in _CLASSES:
        what = "a whole codec: use --model" if "tables" in metadata else "no encoder or decoder of glc"
        raise WeightsError(f"{path}: {what} (`glc export` makes such files from stage=restoration's runs)")
    version = metadata.get("format", "")
    if not version.isdecimal() or len(version) > 9:
        raise WeightsError(f"{path}: damaged: does not say its format")
    if int(version) > FORMAT:
        raise WeightsError(f"{path}: format {version} is newer than this glc reads ({FORMAT})")
    about = _parse(path, metadata, "about")
    return PartLabel(
        "encoder" if kind == "encoder" else "decoder",
        metadata.get("fingerprint", ""),
        about if isinstance(about, dict) else {},
    )


def _parse(path: str | Path, metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its metadata {key!r} cannot be read ({error})") from error


def _digest(tensors: Mapping[str, Tensor], description: Any) -> str:
    sha256 = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        sha256.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _an(kind: str) -> str:
    return f"{'an' if kind == 'encoder' else 'a'} {kind}"
