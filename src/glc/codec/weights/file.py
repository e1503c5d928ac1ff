"""Weights files: safetensors, with the description of their networks in the metadata.

Each kind of file is a dataclass derived from `Label`, which defines its metadata:

| kind        | keys of the metadata                                        | written by              |
|-------------|-------------------------------------------------------------|-------------------------|
| codec       | `format model tables rates fingerprint encoder_fingerprint` | `glc export`            |
| variant     | `format model part fingerprint part_fingerprint about`      | `glc export`            |
| training    | `glc_training content`                                      | `glc export --training` |
| autoencoder | `format model content converted_from`                       | `glc convert`           |

Every `.glc` file holds the first bytes of its codec's fingerprint. The fingerprint covers everything that
decoding depends on: the decoder side, the frequency tables and the architecture. A variant replaces the
encoder or the decoder of one codec, which it names by fingerprint. It does not change the fingerprint: a
variant encoder writes other symbols, a variant decoder renders the same symbols differently.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from glc.codec.entropy.tables import Tables
from glc.codec.weights.architecture import build, build_for
from glc.codec.weights.mmap import MappedFile, open_tensors, opening
from glc.codec.weights.trust import Trust
from glc.errors import ArchitectureError, TableError, WeightsError
from glc.io.atomic import replacing
from glc.models.glc import GLC

FORMAT = 1
"""Version of the layout of weights files."""

Kind = Literal["encoder", "decoder"]
"""The network that a variant replaces."""

TRAINING_NETWORKS = {
    "quantizer": "C",
    "code_loss.predictor": "the code predictor",
    "vq_encoder": "E_VQ",
    "adversarial.discriminator": "the discriminator",
}
"""Networks of training weights: their names in stages II and III (and prefixes of tensors), and titles."""

_ENCODER_SIDE = ("encoder.", "coder.analysis.", "coder.hyper.analysis.")


@dataclass(frozen=True)
class Header:
    """The metadata of a safetensors file. Errors name the file."""

    path: str | Path
    metadata: Mapping[str, str]

    def error(self, text: str) -> WeightsError:
        """Return an error about the file."""
        return WeightsError(f"{self.path}: {text}")

    def json(self, key: str) -> Any:
        """Return a value that is stored as JSON.

        Raises:
            WeightsError: it is missing, or not JSON.
        """
        try:
            return json.loads(self.metadata[key])
        except KeyError:
            raise self.error(f"the metadata key {key!r} is missing; export the model again") from None
        except (ValueError, RecursionError) as error:
            raise self.error(f"the metadata key {key!r} cannot be read ({error})") from error

    def description(self) -> Mapping[str, Any]:
        """Return the architecture; raises as `json`."""
        found = self.json("model")
        if not isinstance(found, Mapping):
            raise self.error("the metadata key 'model' does not describe a network")
        return found


class Label(ABC):
    """The metadata of one kind of weights file. Not verified before the tensors are read."""

    MARK: ClassVar[str]
    """Metadata key that identifies files of this kind."""
    USE: ClassVar[str]
    """Description and use of such a file, for errors where another kind was expected; `{self}`: the label."""
    FORMAT: ClassVar[int | None] = FORMAT
    """Newest version of its layout that this glc reads; None if the kind has no version."""

    @classmethod
    @abstractmethod
    def parse(cls, header: Header) -> Self:
        """Read the metadata.

        Raises:
            WeightsError: they are corrupt.
        """

    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """Return the metadata that `parse` reads, without the format and the digests."""

    def digests(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Return the digests in the metadata, by key."""
        return {}


@dataclass(frozen=True)
class CodecLabel(Label):
    """Label of a codec."""

    description: Mapping[str, Any]
    """The architecture, for `build`."""
    tables: Tables
    rates: Sequence[Mapping[str, Any]]
    """One entry per rate point, with the `lmbda` that it was trained for, or None."""
    fingerprint: str = ""
    """As stored in the file, 64 hexadecimal digits; recomputed on saving."""

    MARK = "tables"
    USE = "a complete codec: use it with --model"

    @classmethod
    def parse(cls, header: Header) -> Self:
        """Read the metadata."""
        rates = cls.rate_points(header)
        try:
            tables = Tables.from_json(header.json("tables"))
        except TableError as error:
            raise header.error(f"invalid frequency tables: {error}") from error
        return cls(header.description(), tables, rates, header.metadata.get("fingerprint", ""))

    @staticmethod
    def rate_points(header: Header) -> list[Mapping[str, Any]]:
        """Return `rates` without parsing the frequency tables, which takes milliseconds."""
        rates = header.json("rates")
        if not isinstance(rates, list) or not all(isinstance(rate, Mapping) for rate in rates):
            raise header.error("the metadata key 'rates' must describe the rate points")
        return rates

    def metadata(self) -> dict[str, str]:
        """Return the metadata that `parse` reads, without the format and the digests."""
        return {
            "model": json.dumps(self.description, sort_keys=True),
            "tables": json.dumps(self.tables.to_json(), separators=(",", ":")),
            "rates": json.dumps([dict(rate) for rate in self.rates]),
        }

    def digests(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Return `fingerprint` and `encoder_fingerprint`."""
        decides = {key: value for key, value in self.description.items() if key != "encoder"}
        encoder = {name: tensor for name, tensor in tensors.items() if name.startswith(_ENCODER_SIDE)}
        decoder = {name: tensor for name, tensor in tensors.items() if name not in encoder}
        return {
            "fingerprint": _digest(_canonical([decides, self.tables.to_json()]), decoder, _canonical),
            "encoder_fingerprint": _digest(b"", encoder, _canonical),
        }


@dataclass(frozen=True)
class VariantLabel(Label):
    """Label of an encoder or decoder variant of one codec."""

    kind: Kind
    description: Mapping[str, Any]
    fingerprint: str
    """Of the codec that it was made for, 64 hexadecimal digits."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained for (stage, degradation, style), as plain values; informative."""

    MARK = "part"
    USE = "one {self.kind}: use it with --{self.kind}"

    @classmethod
    def parse(cls, header: Header) -> Self:
        """Read the metadata."""
        kind, about = header.metadata["part"], header.json("about")
        if kind not in ("encoder", "decoder"):
            raise header.error(f"holds a {kind!r}, which this glc does not support; update glc")
        about = about if isinstance(about, dict) else {}
        return cls(kind, header.description(), header.metadata.get("fingerprint", ""), about)  # type: ignore[arg-type]

    def metadata(self) -> dict[str, str]:
        """Return the metadata that `parse` reads, without the format and the digests."""
        return {
            "part": self.kind,
            "model": json.dumps(self.description, sort_keys=True),
            "fingerprint": self.fingerprint,
            "about": json.dumps(dict(self.about), sort_keys=True),
        }

    def digests(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Return `part_fingerprint`."""
        start = json.dumps(self.description, sort_keys=True).encode()
        return {"part_fingerprint": _digest(start, tensors, lambda value: json.dumps(value).encode())}


@dataclass(frozen=True)
class TrainingLabel(Label):
    """Label of training weights: the networks that training needs besides a codec."""

    networks: Sequence[str]
    """Keys of `TRAINING_NETWORKS`."""
    decoder: str
    """`decoder_digest` of the codec's D."""

    MARK = "glc_training"
    USE = "training weights for a codec: use it with init_from=[CODEC,FILE]"
    FORMAT = None

    @classmethod
    def parse(cls, header: Header) -> Self:
        """Read the metadata."""
        try:
            content = header.json(cls.MARK)
            return cls([str(name) for name in content["networks"]], str(content["decoder"]))
        except (KeyError, TypeError) as error:
            raise header.error(f"its metadata {cls.MARK!r} cannot be read ({error})") from error

    def metadata(self) -> dict[str, str]:
        """Return the metadata that `parse` reads."""
        words = ", ".join(TRAINING_NETWORKS[name] for name in self.networks)
        return {
            self.MARK: json.dumps({"networks": list(self.networks), "decoder": self.decoder}),
            "content": f"{words}: training weights of a codec, for init_from=[CODEC,FILE]",
        }


@dataclass(frozen=True)
class AutoencoderLabel(Label):
    """Label of a converted stage-I autoencoder."""

    description: Mapping[str, Any]
    converted_from: str
    """Title of the source, for people."""

    MARK = "converted_from"
    USE = "a stage-I autoencoder, without a coder: train from it with init_from=FILE"

    @classmethod
    def parse(cls, header: Header) -> Self:
        """Read the metadata."""
        return cls(header.description(), header.metadata["converted_from"])

    def metadata(self) -> dict[str, str]:
        """Return the metadata that `parse` reads."""
        words = "a stage-I auto-encoder: encoder, decoder and codebook, for init_from= of the stages"
        model = json.dumps(self.description, sort_keys=True)
        return {"model": model, "content": words, "converted_from": self.converted_from}


KINDS: tuple[type[Label], ...] = (TrainingLabel, VariantLabel, AutoencoderLabel, CodecLabel)
"""All kinds of weights files."""

_L = TypeVar("_L", bound=Label)


def kind_of(header: Header) -> type[Label]:
    """Return the kind of a weights file.

    Raises:
        WeightsError: it is not a weights file of glc, is corrupt, or of a newer format.
    """
    kind = next((kind for kind in KINDS if kind.MARK in header.metadata), None)
    if kind is None:
        raise header.error("is not a weights file of glc; write one with `glc export`")
    if kind.FORMAT is not None:
        version = header.metadata.get("format", "")
        if not version.isdecimal() or len(version) > 9:
            raise header.error("corrupt: the metadata key 'format' is missing or invalid")
        if int(version) > kind.FORMAT:
            raise header.error(f"format {version} is newer than this glc reads ({kind.FORMAT}); update glc")
    return kind


def read_header(path: str | Path) -> Header:
    """Return the metadata of a weights file, without reading its tensors.

    Raises:
        WeightsError: it is missing, or not a safetensors file.
    """
    with opening(path) as file:
        return Header(path, file.metadata() or {})


def read_label(path: str | Path) -> Label:
    """Return the label of a weights file, without reading its tensors.

    Raises:
        WeightsError: see `read_header` and `kind_of`, or it is corrupt.
    """
    header = read_header(path)
    return kind_of(header).parse(header)


def save(path: str | Path, tensors: Mapping[str, Tensor], label: Label) -> None:
    """Write a weights file atomically."""
    stored = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    version = {} if label.FORMAT is None else {"format": str(label.FORMAT)}
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
    return _digest(b"", halved, lambda value: value[0].encode())


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


def _digest(start: bytes, tensors: Mapping[str, Tensor], head: Callable[[list[Any]], bytes]) -> str:
    """Return the SHA-256 of `start` and of all tensors, sorted by name.

    Args:
        head: maps a tensor's [name, dtype, shape] to the bytes hashed before its data.
    """
    sha256 = hashlib.sha256(start)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha256.update(head([name, str(tensor.dtype), list(tensor.shape)]))
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=dict).encode()
