"""Labels of weights files: their metadata, which say what is in them, and their digests. Needs no PyTorch.

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
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from glc.errors import TableError, WeightsError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from glc.codec.entropy.tables import Tables

    Array = np.ndarray | Tensor

FORMAT = 1
"""Version of the layout of weights files."""
EXTENDED_FORMAT = 2
"""That of codecs with a table of z per rate point or a gate, which readers of format 1 cannot use."""

Kind = Literal["encoder", "decoder"]
"""The network that a variant replaces."""

TRAINING_NETWORKS = {
    "quantizer": "C",
    "code_loss.predictor": "the code predictor",
    "vq_encoder": "E_VQ",
    "adversarial.discriminator": "the discriminator",
}
"""Networks of training weights: their names in stages II and III (and prefixes of tensors), and titles."""

ENCODER_SIDE = ("encoder.", "coder.analysis.", "coder.hyper.analysis.")


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

    @property
    def format(self) -> int | None:
        """The oldest version of the layout that can hold this file, which is written into it."""
        return None if self.FORMAT is None else FORMAT

    def digests(self, tensors: Mapping[str, "Array"]) -> dict[str, str]:
        """Return the digests in the metadata, by key."""
        return {}


@dataclass(frozen=True)
class CodecLabel(Label):
    """Label of a codec."""

    description: Mapping[str, Any]
    """The architecture, for `build`."""
    tables: "Tables"
    rates: Sequence[Mapping[str, Any]]
    """One entry per rate point, with the `lmbda` that it was trained for, or None."""
    fingerprint: str = ""
    """As stored in the file, 64 hexadecimal digits; recomputed on saving."""

    MARK = "tables"
    USE = "a complete codec: use it with --model"
    FORMAT = EXTENDED_FORMAT

    @classmethod
    def parse(cls, header: Header) -> Self:
        """Read the metadata."""
        from glc.codec.entropy.tables import Tables

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

    @property
    def format(self) -> int:
        """The oldest version of the layout that can hold this codec."""
        coder = self.description.get("coder")
        gated = isinstance(coder, Mapping) and coder.get("gate") is not None
        return EXTENDED_FORMAT if gated or self.tables.z_rates else FORMAT

    def metadata(self) -> dict[str, str]:
        """Return the metadata that `parse` reads, without the format and the digests."""
        return {
            "model": json.dumps(self.description, sort_keys=True),
            "tables": json.dumps(self.tables.to_json(), separators=(",", ":")),
            "rates": json.dumps([dict(rate) for rate in self.rates]),
        }

    def digests(self, tensors: Mapping[str, "Array"]) -> dict[str, str]:
        """Return `fingerprint` and `encoder_fingerprint`."""
        decides = {key: value for key, value in self.description.items() if key != "encoder"}
        encoder = {name: tensor for name, tensor in tensors.items() if name.startswith(ENCODER_SIDE)}
        decoder = {name: tensor for name, tensor in tensors.items() if name not in encoder}
        return {
            "fingerprint": digest(_canonical([decides, self.tables.to_json()]), decoder, _canonical),
            "encoder_fingerprint": digest(b"", encoder, _canonical),
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

    def digests(self, tensors: Mapping[str, "Array"]) -> dict[str, str]:
        """Return `part_fingerprint`."""
        start = json.dumps(self.description, sort_keys=True).encode()
        return {"part_fingerprint": digest(start, tensors, lambda value: json.dumps(value).encode())}


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
    # Without the library, which would import NumPy: `glc info` reads headers only.
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError("its header is incomplete")
            entries = json.loads(file.read(length))
        metadata = entries.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if end != size - 8 - length or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("its size differs from that in its header")
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from error
    return Header(path, metadata)


def read_label(path: str | Path) -> Label:
    """Return the label of a weights file, without reading its tensors.

    Raises:
        WeightsError: see `read_header` and `kind_of`, or it is corrupt.
    """
    header = read_header(path)
    return kind_of(header).parse(header)


def digest(start: bytes, tensors: Mapping[str, "Array"], head: Callable[[list[Any]], bytes]) -> str:
    """Return the SHA-256 of `start` and of all tensors, sorted by name.

    Args:
        tensors: as stored; arrays of NumPy and tensors of PyTorch give the same digest.
        head: maps a tensor's [name, dtype, shape] to the bytes hashed before its data.
    """
    sha256 = hashlib.sha256(start)
    for name in sorted(tensors):
        dtype, data = _content(tensors[name])
        sha256.update(head([name, dtype, list(tensors[name].shape)]))
        sha256.update(data)
    return sha256.hexdigest()


def _content(tensor: "Array") -> tuple[str, memoryview]:
    """Return the dtype, by PyTorch's name, and the bytes of a tensor."""
    if hasattr(tensor, "detach"):
        import torch

        given = tensor.detach().cpu().contiguous()
        return str(given.dtype), given.reshape(-1).view(torch.uint8).numpy().data
    return f"torch.{tensor.dtype}", tensor.reshape(-1).data.cast("B")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=dict).encode()
