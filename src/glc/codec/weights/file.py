"""Weights files: safetensors, with what there is to say of the tensors in the metadata.

Each kind of file is a dataclass derived from `Label`, which says what its metadata hold:

| kind        | keys of the metadata                                        | written by              |
|-------------|-------------------------------------------------------------|-------------------------|
| codec       | `format model tables rates fingerprint encoder_fingerprint` | `glc export`            |
| variant     | `format model part fingerprint part_fingerprint about`      | `glc export`            |
| training    | `glc_training content`                                      | `glc export --training` |
| autoencoder | `format model content converted_from`                       | `glc convert`           |

The first bytes of a codec's fingerprint stand in every `.glc` file. It covers what decides the decoded image:
the decoder's side, the frequency tables and the architecture. A variant is an encoder or a decoder in the
place of a codec's own and names the codec by its fingerprint, which it does not change: another encoder
chooses other symbols, another decoder renders the same symbols differently.
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
"""What a variant replaces."""

TRAINING_NETWORKS = {
    "quantizer": "C",
    "code_loss.predictor": "the code predictor",
    "vq_encoder": "E_VQ",
    "adversarial.discriminator": "the discriminator",
}
"""Networks of training weights by their names in stages II and III, which are those of the tensors too."""

_ENCODER_SIDE = ("encoder.", "coder.analysis.", "coder.hyper.analysis.")


@dataclass(frozen=True)
class Header:
    """The metadata of a safetensors file; errors name the file."""

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
            raise self.error(f"lacks the metadata {key!r}; export the model again") from None
        except (ValueError, RecursionError) as error:
            raise self.error(f"its metadata {key!r} cannot be read ({error})") from error

    def description(self) -> Mapping[str, Any]:
        """Return the architecture; errors as of `json`."""
        found = self.json("model")
        if not isinstance(found, Mapping):
            raise self.error("its metadata 'model' does not describe a network")
        return found


class Label(ABC):
    """What a kind of weights file says of itself. It is not verified before the tensors are read."""

    MARK: ClassVar[str]
    """Key of the metadata by which a file of this kind is known."""
    USE: ClassVar[str]
    """What such a file is and how to use it, for a reader who expected another; `{self}` is the label."""
    FORMAT: ClassVar[int | None] = FORMAT
    """Newest version of its layout that this glc reads; None where a file states none."""

    @classmethod
    @abstractmethod
    def parse(cls, header: Header) -> Self:
        """Read the metadata.

        Raises:
            WeightsError: they are damaged.
        """

    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """Return what `parse` reads, without the format and the digests."""

    def digests(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Return the checksums that the metadata state, by key.

        Args:
            tensors: as they are stored.
        """
        return {}


@dataclass(frozen=True)
class CodecLabel(Label):
    """Of a codec."""

    description: Mapping[str, Any]
    """The architecture, for `build`."""
    tables: Tables
    rates: Sequence[Mapping[str, Any]]
    """One entry per rate point, with the `lmbda` that it was trained for, or None."""
    fingerprint: str = ""
    """As the file states it, 64 hexadecimal digits; computed anew when it is saved."""

    MARK = "tables"
    USE = "a whole codec: use it with --model"

    @classmethod
    def parse(cls, header: Header) -> Self:
        """Read the metadata."""
        rates = header.json("rates")
        if not isinstance(rates, list) or not all(isinstance(rate, Mapping) for rate in rates):
            raise header.error("its metadata 'rates' must describe the rate points")
        try:
            tables = Tables.from_json(header.json("tables"))
        except TableError as error:
            raise header.error(f"its frequency tables cannot be used: {error}") from error
        return cls(header.description(), tables, rates, header.metadata.get("fingerprint", ""))

    def metadata(self) -> dict[str, str]:
        """Return what `parse` reads, without the format and the digests."""
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
    """Of an encoder or a decoder for one codec."""

    kind: Kind
    description: Mapping[str, Any]
    fingerprint: str
    """Of the codec that it was made for, 64 hexadecimal digits."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained for, as plain values; for people."""

    MARK = "part"
    USE = "the weights of one {self.kind}: use it with --{self.kind}"

    @classmethod
    def parse(cls, header: Header) -> Self:
        """Read the metadata."""
        kind, about = header.metadata["part"], header.json("about")
        if kind not in ("encoder", "decoder"):
            raise header.error(f"holds a {kind!r}, which this glc does not know")
        about = about if isinstance(about, dict) else {}
        return cls(kind, header.description(), header.metadata.get("fingerprint", ""), about)  # type: ignore[arg-type]

    def metadata(self) -> dict[str, str]:
        """Return what `parse` reads, without the format and the digests."""
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
    """Of the networks that training needs besides a codec, so that others can resume from it."""

    networks: Sequence[str]
    """Keys of `TRAINING_NETWORKS`."""
    decoder: str
    """`decoder_digest` of the codec's D."""

    MARK = "glc_training"
    USE = "networks that training needs besides a codec: use it with init_from=[CODEC,FILE]"
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
        """Return what `parse` reads."""
        words = ", ".join(TRAINING_NETWORKS[name] for name in self.networks)
        return {
            self.MARK: json.dumps({"networks": list(self.networks), "decoder": self.decoder}),
            "content": f"{words}: what training needs besides the codec, for init_from=[CODEC,FILE]",
        }


@dataclass(frozen=True)
class AutoencoderLabel(Label):
    """Of an autoencoder of stage I that was converted."""

    description: Mapping[str, Any]
    converted_from: str
    """What the source was, for people."""

    MARK = "converted_from"
    USE = "an autoencoder of stage I, without a coder: start a training run from it with init_from=FILE"

    @classmethod
    def parse(cls, header: Header) -> Self:
        """Read the metadata."""
        return cls(header.description(), header.metadata["converted_from"])

    def metadata(self) -> dict[str, str]:
        """Return what `parse` reads."""
        words = "a stage-I auto-encoder: encoder, decoder and codebook, for init_from= of the stages"
        model = json.dumps(self.description, sort_keys=True)
        return {"model": model, "content": words, "converted_from": self.converted_from}


KINDS: tuple[type[Label], ...] = (TrainingLabel, VariantLabel, AutoencoderLabel, CodecLabel)
"""All kinds of weights files."""

_L = TypeVar("_L", bound=Label)


def label_of(path: str | Path, metadata: Mapping[str, str]) -> Label:
    """Return what a safetensors file says of itself.

    Args:
        path: the file, for messages.
        metadata: of its header.

    Raises:
        WeightsError: it is not a weights file of glc, is damaged, or of a newer format.
    """
    header = Header(path, metadata)
    kind = next((kind for kind in KINDS if kind.MARK in metadata), None)
    if kind is None:
        raise header.error("is not a weights file of glc; make one with `glc export`")
    if kind.FORMAT is not None:
        version = metadata.get("format", "")
        if not version.isdecimal() or len(version) > 9:
            raise header.error("damaged: does not state its format")
        if int(version) > kind.FORMAT:
            raise header.error(f"format {version} is newer than this glc reads ({kind.FORMAT})")
    return kind.parse(header)


def read_label(path: str | Path) -> Label:
    """Return what a weights file says of itself, without reading its tensors.

    Raises:
        WeightsError: it is missing, or see `label_of`.
    """
    with opening(path) as file:
        return label_of(path, file.metadata() or {})


def save(path: str | Path, tensors: Mapping[str, Tensor], label: Label) -> None:
    """Write a weights file atomically.

    Args:
        path: the file.
        tensors: as they are to be stored.
        label: what the file says of them.
    """
    stored = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    version = {} if label.FORMAT is None else {"format": str(label.FORMAT)}
    metadata = {**version, **label.metadata(), **label.digests(stored)}
    with replacing(path) as partial:
        save_file(stored, partial, metadata)


@dataclass(frozen=True)
class Opened(Generic[_L]):
    """A weights file whose tensors are there to be used."""

    header: Header
    label: _L
    tensors: Mapping[str, Tensor]
    files: tuple[MappedFile, ...]
    """Those whose memory the tensors share, see `glc.codec.weights.mmap`."""

    def build(self, description: Any, trust: Trust = ()) -> Any:
        """Build the network in the file, and check that the tensors are what the file was saved with.

        Args:
            description: its architecture.
            trust: packages whose classes it may name, see `glc.codec.weights.trust`.

        Raises:
            WeightsError: the description cannot be built, does not fit the tensors, or they are damaged.
        """
        with _naming(self.header.path):
            network = build_for(description, self.tensors, bool(self.files), trust)
        for name, value in self.label.digests(self.tensors).items():
            if self.header.metadata.get(name) != value:
                raise self.header.error(f"damaged: the content does not have the {name} that it states")
        for file in self.files:
            file.release()
        return network


def open_weights(path: str | Path, kind: type[_L], wanted: str, mapped: bool = False) -> Opened[_L]:
    """Open a weights file of one kind.

    Args:
        path: the file.
        kind: the kind.
        wanted: what to call it in messages.
        mapped: let the tensors be the file's memory where they can, see `glc.codec.weights.mmap`.

    Raises:
        WeightsError: the file is missing, damaged, of a newer format, or of another kind.
    """
    metadata, tensors, files = open_tensors(path, mapped)
    label = label_of(path, metadata)
    header = Header(path, metadata)
    if not isinstance(label, kind):
        raise header.error(f"not {wanted} but {label.USE.format(self=label)}")
    return Opened(header, label, tensors, files)


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


def read_weights(path: str | Path, mapped: bool = False, trust: Trust = ()) -> Weights:
    """Read a codec's weights file.

    Args:
        path: the file.
        mapped: see `open_weights`: for codecs, which need a part of the tensors at a time. What is trained
            has memory of its own.
        trust: packages whose networks it may name, see `glc.codec.weights.trust`.

    Raises:
        WeightsError: when the file is missing, is not a codec's, is damaged, or is of a newer format, or
            names a network of a package that is not trusted.
    """
    opened = open_weights(path, CodecLabel, "a codec", mapped)
    label = opened.label
    model = _codec(path, opened.build(label.description, trust))
    if len(label.rates) != model.num_rates:
        raise opened.header.error(f"its metadata 'rates' must describe {model.num_rates} rate points")
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
    """Return a codec's `fingerprint` and `encoder_fingerprint`, in hexadecimal digits.

    Args:
        state: the tensors as they are stored.
        description: the architecture.
        tables: the frequency tables.
    """
    return CodecLabel(description, tables, []).digests(state)


def build_model(path: str | Path, description: Any, trust: Trust = ()) -> GLC:
    """Build the codec that a description names, with random weights.

    Args:
        path: what to call it in messages.
        description: the architecture; not of a file of unknown origin, for nothing limits what it may
            allocate.
        trust: packages whose networks it may name, see `glc.codec.weights.trust`.

    Raises:
        WeightsError: when it names something else, or more; the message names `path`.
    """
    with _naming(path):
        model = build(description, trust)
    return _codec(path, model)


def fill(path: str | Path, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load tensors into a model.

    Raises:
        WeightsError: when they do not fit; the message names `path` and the tensors.
    """
    with _naming(path):
        model.load_state_dict(state)


def decoder_digest(decoder: Mapping[str, Tensor]) -> str:
    """Return a digest of D's weights in half precision, the same for a codec exported with or without it."""
    halved = {name: tensor.half() for name, tensor in decoder.items()}
    return _digest(b"", halved, lambda value: value[0].encode())


def _codec(path: str | Path, model: Any) -> GLC:
    if not isinstance(model, GLC):
        raise WeightsError(f"{path}: describes {type(model).__name__}, not a codec")
    return model


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Name the file in what goes wrong while its network is built."""
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
        start: what comes first.
        tensors: of each, its bytes as they are stored.
        head: what comes before these, from a tensor's name, type and shape.
    """
    sha256 = hashlib.sha256(start)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha256.update(head([name, str(tensor.dtype), list(tensor.shape)]))
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=dict).encode()
