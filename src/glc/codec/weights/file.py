"""Weights files: safetensors, with the description of their networks in the metadata.

`glc.codec.weights.labels` has the kinds of files and their metadata.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors.torch import save_file
from torch import Tensor, nn

from glc.codec.entropy.tables import Tables
from glc.codec.weights.architecture import build, build_for
from glc.codec.weights.labels import CodecLabel, Header, Label, digest, kind_of
from glc.codec.weights.mmap import MappedFile, open_tensors
from glc.codec.weights.trust import Trust
from glc.errors import ArchitectureError, WeightsError
from glc.io.atomic import replacing
from glc.models.glc import GLC

_L = TypeVar("_L", bound=Label)


def save(path: str | Path, tensors: Mapping[str, Tensor], label: Label) -> None:
    """Write a weights file atomically."""
    stored = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    version = {} if label.format is None else {"format": str(label.format)}
    metadata = {**version, **label.metadata(), **label.digests(stored)}
    with replacing(path) as partial:
        save_file(stored, partial, metadata)


@dataclass(frozen=True)
class Opened(Generic[_L]):
    """An open weights file with its tensors."""

    header: Header
    label: _L
    tensors: Mapping[str, Tensor]
    files: tuple[MappedFile, ...]
    """Files that the tensors are mapped from, see `glc.codec.weights.mmap`."""

    def build(self, description: Any, trust: Trust = ()) -> Any:
        """Build the network in the file, and verify its digests.

        Raises:
            WeightsError: the description cannot be built or does not fit the tensors, or a digest differs.
        """
        with _naming(self.header.path):
            network = build_for(description, self.tensors, bool(self.files), trust)
        for name, value in self.label.digests(self.tensors).items():
            if self.header.metadata.get(name) != value:
                raise self.header.error(f"corrupt: the content does not match its {name}")
        for file in self.files:
            file.release()
        return network


def open_weights(path: str | Path, kind: type[_L], wanted: str, mapped: bool = False) -> Opened[_L]:
    """Open a weights file of one kind.

    Args:
        mapped: memory-map the tensors where possible, see `glc.codec.weights.mmap`.

    Raises:
        WeightsError: the file is missing, corrupt, of a newer format, or of another kind.
    """
    metadata, tensors, files = open_tensors(path, mapped)
    header = Header(path, metadata)
    label = kind_of(header).parse(header)
    if not isinstance(label, kind):
        raise header.error(f"is not {wanted} but {label.USE.format(self=label)}")
    return Opened(header, label, tensors, files)


@dataclass(frozen=True)
class Weights:
    """The weights of a codec, with everything needed to use them."""

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
    """Their file, for messages."""
    files: tuple[MappedFile, ...] = ()
    """Files that the model's tensors are mapped from, see `glc.codec.weights.mmap`."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy (also in another process): its tensors are not mapped."""
        return {**self.__dict__, "files": ()}


def read_weights(path: str | Path, mapped: bool = False, trust: Trust = ()) -> Weights:
    """Read a codec's weights file.

    Args:
        mapped: see `open_weights`. For codecs, which use some of the tensors at a time; not for training.

    Raises:
        WeightsError: the file is missing, not a codec's, corrupt, of a newer format, or names a network of a
            package that is not trusted.
    """
    opened = open_weights(path, CodecLabel, "a codec", mapped)
    label = opened.label
    model = _codec(path, opened.build(label.description, trust))
    if len(label.rates) != model.num_rates:
        raise opened.header.error(f"the metadata key 'rates' must describe {model.num_rates} rate points")
    return Weights(
        model.eval(), label.description, label.tables, label.rates, label.fingerprint, str(path), opened.files
    )


def save_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    description: Mapping[str, Any],
    tables: Tables,
    rates: Sequence[Mapping[str, Any]],
) -> None:
    """Write a codec's weights file atomically."""
    save(path, state, CodecLabel(description, tables, rates))


def fingerprints(
    state: Mapping[str, Tensor], description: Mapping[str, Any], tables: Tables
) -> dict[str, str]:
    """Return a codec's `fingerprint` and `encoder_fingerprint`, in hexadecimal.

    Args:
        state: the tensors as stored.
    """
    return CodecLabel(description, tables, []).digests(state)


def build_model(path: str | Path, description: Any, trust: Trust = ()) -> GLC:
    """Build a described codec with random weights.

    Args:
        description: the architecture. It must be trusted: its memory is not limited.

    Raises:
        WeightsError: it cannot be built, or is not a codec; the message names `path`.
    """
    with _naming(path):
        model = build(description, trust)
    return _codec(path, model)


def fill(path: str | Path, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load tensors into a model.

    Raises:
        WeightsError: they do not fit; the message names `path` and the tensors.
    """
    with _naming(path):
        model.load_state_dict(state)


def decoder_digest(decoder: Mapping[str, Tensor]) -> str:
    """Return a digest of D's weights in half precision: the same with and without `--half`."""
    halved = {name: tensor.half() for name, tensor in decoder.items()}
    return digest(b"", halved, lambda value: value[0].encode())


def _codec(path: str | Path, model: Any) -> GLC:
    if not isinstance(model, GLC):
        raise WeightsError(f"{path}: describes {type(model).__name__}, not a codec")
    return model


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Turn errors of building a network into `WeightsError`s that name its file."""
    try:
        yield
    except (ArchitectureError, RecursionError) as error:
        raise WeightsError(f"{path}: {error}") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path}: the weights do not fit their description: {reason}") from error
