"""Read weights files as arrays of NumPy."""

import json
import mmap
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from glc.codec.entropy.tables import Tables
from glc.codec.onnx import networks
from glc.codec.weights.labels import CodecLabel, Header, Kind, Label, VariantLabel, kind_of
from glc.errors import ArchitectureError, BackendError, WeightsError

TORCH_HINT = "use the backend torch (pip install 'glc-codec[torch]')"
"""End of messages about what this backend cannot do."""

_L = TypeVar("_L", bound=Label)
_DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "U8": "u1", "BOOL": "?"}
"""NumPy's names of safetensors' types."""


@dataclass(frozen=True)
class ArrayWeights:
    """The weights of a codec of glc's own networks."""

    description: Mapping[str, Any]
    """The architecture."""
    tables: Tables
    rates: Sequence[Mapping[str, Any]]
    """One entry per rate point, from the fewest bits."""
    fingerprint: str
    """64 hexadecimal digits."""
    tensors: Mapping[str, np.ndarray]
    """As stored, by name."""
    source: str
    """Their file, for messages."""


def read_arrays(path: Path, encoder: Path | None = None, decoder: Path | None = None) -> ArrayWeights:
    """Return the weights in a codec's file, with an encoder or decoder variant in place of its own.

    Raises:
        WeightsError: a file is missing, corrupt or of another kind.
        BackendError: it has networks without ONNX graphs, or tensors that NumPy cannot read.
    """
    label, tensors = _open(path, CodecLabel, "a codec")
    weights = ArrayWeights(
        label.description, label.tables, label.rates, label.fingerprint, tensors, str(path)
    )
    for kind, file in (("encoder", encoder), ("decoder", decoder)):
        if file is not None:
            weights = _attach(weights, kind, file)  # type: ignore[arg-type]
    try:
        networks.check(weights.description)
    except ArchitectureError as error:
        raise BackendError(f"{path}: {error}; {TORCH_HINT}") from error
    return weights


def _attach(weights: ArrayWeights, kind: Kind, path: Path) -> ArrayWeights:
    label, tensors = read_variant_arrays(path, kind)
    if label.fingerprint != weights.fingerprint:
        raise WeightsError(
            f"{path}: {kind} for the codec {label.fingerprint[:8]}; {weights.source} is "
            f"{weights.fingerprint[:8]}: select that codec with --model, or train a variant for this one"
        )
    others = {name: array for name, array in weights.tensors.items() if not name.startswith(f"{kind}.")}
    own = {f"{kind}.{name}": array for name, array in tensors.items()}
    return replace(
        weights, description={**weights.description, kind: label.description}, tensors={**others, **own}
    )


def read_variant_arrays(path: Path, kind: Kind) -> tuple[VariantLabel, dict[str, np.ndarray]]:
    """Return an encoder or decoder variant's label and tensors; raises as `read_arrays`."""
    wanted = "an encoder" if kind == "encoder" else "a decoder"
    label, tensors = _open(path, VariantLabel, wanted)
    if label.kind != kind:
        raise WeightsError(f"{path}: is not {wanted} but {label.USE.format(self=label)}")
    return label, tensors


def _open(path: Path, kind: type[_L], wanted: str) -> tuple[_L, dict[str, np.ndarray]]:
    try:
        with safe_open(path, framework="np") as file:
            header = Header(path, file.metadata() or {})
            label = kind_of(header).parse(header)
            if not isinstance(label, kind):
                raise header.error(f"is not {wanted} but {label.USE.format(self=label)}")
            tensors = _map(path)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except KeyError as error:
        raise BackendError(f"{path}: holds {error}, which NumPy cannot read; {TORCH_HINT}") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from error
    for name, value in label.digests(tensors).items():
        if header.metadata.get(name) != value:
            raise header.error(f"corrupt: the content does not match its {name}")
    return label, tensors


def _map(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file that `safe_open` has checked, mapped from it and read-only.

    The library copies each tensor to memory of its own, which takes ten times as long in a new process. As
    in `glc.codec.weights.mmap`, the file must not be truncated while it is in use; it is copied on Windows,
    where a mapped file cannot be replaced.

    Raises:
        KeyError: the type of a tensor, which NumPy does not have.
    """
    if sys.platform == "win32":
        memory: bytes | mmap.mmap = path.read_bytes()
    else:
        with open(path, "rb") as file:
            populate = getattr(mmap, "MAP_POPULATE", 0)  # reads all pages at once, on Linux
            memory = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE | populate, mmap.PROT_READ)
    start = 8 + int.from_bytes(memory[:8], "little")
    tensors = {}
    for name, entry in json.loads(memory[8:start]).items():
        if name == "__metadata__":
            continue
        dtype, (first, stop) = np.dtype(_DTYPES[entry["dtype"]]), entry["data_offsets"]
        array = np.frombuffer(memory, dtype, (stop - first) // dtype.itemsize, start + first)
        tensors[name] = array.reshape(entry["shape"])
    return tensors
