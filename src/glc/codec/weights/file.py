"""A codec's weights file: safetensors with the whole description of the codec in its metadata.

| metadata              | content                                                                         |
|-----------------------|---------------------------------------------------------------------------------|
| `format`              | version of this layout                                                          |
| `model`               | JSON: the architecture, as `glc.codec.weights.architecture.build` takes it              |
| `tables`              | JSON: the integer frequency tables                                              |
| `rates`               | JSON: one entry per rate point, with the `lmbda` that it was trained for, or null |
| `fingerprint`         | SHA-256 of what decides the decoded picture: decoder side, tables, architecture |
| `encoder_fingerprint` | SHA-256 of the tensors that only an encoder needs                               |

The first bytes of the fingerprint stand in every `.glc` file. A new encoder for the same decoder (trained to
restore, say) leaves it as it is: its files stay readable.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glc.codec.entropy.tables import TableError, Tables
from glc.codec.weights.architecture import ArchitectureError, build, build_for
from glc.codec.weights.mmap import MappedFile, open_tensors
from glc.codec.weights.training import KEY
from glc.errors import WeightsError
from glc.io.atomic import replacing
from glc.models.glc import GLC

FORMAT = 1
"""Version of the weights file."""

_STAGE_ONE = "glc.models.autoencoder.VQAutoencoder"
_ENCODER_SIDE = ("encoder.", "coder.analysis.", "coder.hyper.analysis.")


@dataclass(frozen=True)
class Weights:
    """All that makes a codec."""

    model: GLC
    """In evaluation mode, on the CPU, float32."""
    description: Mapping[str, Any]
    """The architecture, for `build`."""
    tables: Tables
    rates: Sequence[Mapping[str, Any]]
    """One entry per rate point, from the fewest bits."""
    fingerprint: str
    """64 hexadecimal digits."""
    source: str = "the weights"
    """What to call them in messages: their file."""
    files: tuple[MappedFile, ...] = ()
    """Those whose memory the model's tensors share, see `glc.codec.weights.mmap`."""

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy holds, one for another process too: its tensors have memory of their own."""
        return {**self.__dict__, "files": ()}


def fingerprints(
    state: Mapping[str, Tensor], description: Mapping[str, Any], tables: Tables
) -> dict[str, str]:
    """Return `fingerprint` and `encoder_fingerprint`, in hexadecimal digits.

    Args:
        state: the tensors as they are stored.
        description: the architecture.
        tables: the frequency tables.
    """
    decoder, encoder = hashlib.sha256(), hashlib.sha256()
    decides = {key: value for key, value in description.items() if key != "encoder"}
    decoder.update(_canonical([decides, tables.to_json()]))
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest = encoder if name.startswith(_ENCODER_SIDE) else decoder
        digest.update(_canonical([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return {"fingerprint": decoder.hexdigest(), "encoder_fingerprint": encoder.hexdigest()}


def save_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    description: Mapping[str, Any],
    tables: Tables,
    rates: Sequence[Mapping[str, Any]],
) -> None:
    """Write a weights file under another name and rename it when it is whole."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    metadata = {
        "format": str(FORMAT),
        "model": json.dumps(description, sort_keys=True),
        "tables": json.dumps(tables.to_json(), separators=(",", ":")),
        "rates": json.dumps([dict(rate) for rate in rates]),
        **fingerprints(tensors, description, tables),
    }
    with replacing(Path(path)) as partial:
        save_file(tensors, partial, metadata)


def read_weights(path: str | Path, mapped: bool = False) -> Weights:
    """Read a weights file.

    Args:
        path: the file.
        mapped: let the tensors be the file's memory where they can, see `glc.codec.weights.mmap`: for codecs,
            which need a part of them at a time. What is trained has memory of its own.

    Raises:
        WeightsError: when the file is missing, is not a codec's, is damaged, or is of a newer format.
    """
    metadata, tensors, files = open_tensors(path, mapped)
    version = metadata.get("format", "")
    if "part" in metadata:
        kind = metadata["part"]
        raise WeightsError(f"{path}: the weights of one {kind}, not of a codec: use them with --{kind}")
    if KEY in metadata:
        raise WeightsError(f"{path}: networks that training needs besides a codec: init_from=[CODEC,{path}]")
    if "model" not in metadata or not version.isdecimal() or len(version) > 9:
        raise WeightsError(f"{path}: has no description of a codec in it; make such a file with `glc export`")
    if int(version) > FORMAT:
        raise WeightsError(f"{path}: format {version} is newer than this glc reads ({FORMAT})")
    description = _parse(path, metadata, "model")
    if isinstance(description, dict) and description.get("_target_") == _STAGE_ONE:
        raise WeightsError(
            f"{path}: a VQAutoencoder of stage I, without a coder, makes no files; "
            f"start a training from it with init_from={path}"
        )
    model = build_model(path, description, tensors, share=bool(files))
    try:
        tables = Tables.from_json(_parse(path, metadata, "tables"))
    except TableError as error:
        raise WeightsError(f"{path}: its frequency tables cannot be used: {error}") from error
    rates = _parse(path, metadata, "rates")
    if (
        not isinstance(rates, list)
        or len(rates) != model.num_rates
        or not all(isinstance(rate, Mapping) for rate in rates)
    ):
        raise WeightsError(f"{path}: its metadata 'rates' must describe {model.num_rates} rate points")
    found = fingerprints(tensors, description, tables)
    for name, value in found.items():
        if metadata.get(name) != value:
            raise WeightsError(f"{path}: damaged: the content does not have the {name} that it states")
    for file in files:
        file.release()
    return Weights(model.eval(), description, tables, rates, found["fingerprint"], str(path), files)


def load_model(path: str | Path) -> GLC:
    """Return the model in a weights file, in evaluation mode on the CPU; see `read_weights`."""
    return read_weights(path).model


def fill(path: str | Path, model: GLC, state: Mapping[str, Tensor]) -> None:
    """Load tensors into a model.

    Raises:
        WeightsError: when they do not fit; the message names `path` and the tensors.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path}: {_misfit(error)}") from error


def build_model(
    path: str | Path, description: Any, tensors: Mapping[str, Tensor] | None = None, share: bool = False
) -> GLC:
    """Build the codec that a description names.

    Args:
        path: what to call it in messages.
        description: the architecture.
        tensors: its weights, which also limit what it may allocate; None for random ones and no limit. Give
            them where the description comes from a file.
        share: see `build_for`.

    Raises:
        WeightsError: when it names something else, or more, or what the tensors do not fit; the message names
            `path`.
    """
    try:
        model = build(description) if tensors is None else build_for(description, tensors, share)
    except (ArchitectureError, RecursionError) as error:
        raise WeightsError(f"{path}: {error}") from error
    except RuntimeError as error:
        raise WeightsError(f"{path}: {_misfit(error)}") from error
    if not isinstance(model, GLC):
        raise WeightsError(f"{path}: describes {type(model).__name__}, not a codec")
    return model


def _misfit(error: RuntimeError) -> str:
    return f"the weights do not fit their description: {' '.join(str(error).split())}"


def _parse(path: str | Path, metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except KeyError:
        raise WeightsError(f"{path}: lacks the metadata {key!r}; export the model again") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its metadata {key!r} cannot be read ({error})") from error


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=dict).encode()
