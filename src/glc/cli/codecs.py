"""The codecs of a command: models known by name, and which of them made a file."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glc.cli.errors import NothingDoneError, message
from glc.codec.bitstream import Header
from glc.codec.codec import Codec, choose_device
from glc.codec.load import assemble
from glc.codec.weights.catalog import DEFAULT_MODEL, FOLDER_VARIABLE, catalog, find
from glc.codec.weights.file import CodecLabel, Kind, read_label
from glc.codec.weights.variants import made_for, read_variant
from glc.errors import WeightsError, WrongWeightsError


@dataclass(frozen=True)
class KnownModel:
    """The header of a weights file; it is verified only when the file is loaded."""

    name: str
    file: Path
    fingerprint: str
    """Hexadecimal digits; a `.glc` file names the first eight."""
    rates: list[Mapping[str, Any]]
    """One entry per rate point."""
    bytes: int

    def parts(self, kind: Kind) -> list[str]:
        """Return the names of the encoders or decoders that were made for it."""
        return list(made_for(self.fingerprint, kind))

    def made(self, header: Header) -> bool:
        """Whether a file with this header can be decoded with the model."""
        return self.fingerprint.startswith(header.fingerprint.hex())


def known_models() -> tuple[list[KnownModel], list[str]]:
    """Return the models known by name, and a line for each file that is not one."""
    models, problems = [], []
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and not os.path.isdir(folder):
        problems.append(f"{FOLDER_VARIABLE}={folder}: no such folder")
    for name, file in catalog().items():
        try:
            models.append(_describe(name, file))
        except (OSError, WeightsError) as error:
            problems.append(message(error))
    return models, problems


def _describe(name: str, file: Path) -> KnownModel:
    # The header only: reading all tensors to check the fingerprint takes seconds.
    label = read_label(file)
    if not isinstance(label, CodecLabel):
        raise WeightsError(f"{file}: not a codec but {label.USE.format(self=label)}")
    return KnownModel(name, file, label.fingerprint, list(label.rates), file.stat().st_size)


def model_of(header: Header, known: Iterable[KnownModel]) -> KnownModel | None:
    """Return the first of the known models that decodes a file with this header."""
    return next((model for model in known if model.made(header)), None)


@dataclass
class Codecs:
    """The codecs that a command uses, each loaded once.

    Args:
        model: what the user chose, or None.
        device: name of the device.
        precision: number format, see `glc.load`.
        memory: limit in bytes, or None for the available memory.
        encoder: file or name of an encoder to use instead of the codec's own, or None.
        decoder: the same of a decoder.

    Raises:
        NothingDoneError: the device does not exist, or the chosen model, encoder or decoder cannot be used.
    """

    model: str | None
    device: str
    precision: str = "auto"
    memory: int | None = None
    encoder: str | None = None
    decoder: str | None = None
    loaded: dict[Path, Codec] = field(default_factory=dict, init=False)
    known: list[KnownModel] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.known = known_models()[0]
        try:
            choose_device(self.device)
            if self.encoder is not None:
                read_variant(find(self.encoder, "encoder"), "encoder")
            if self.decoder is not None:
                read_variant(find(self.decoder, "decoder"), "decoder")
            if self.model is not None:
                self._load(find(self.model))
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            raise NothingDoneError(message(error)) from error

    def for_images(self) -> Codec:
        """Return the chosen codec, or the default one.

        Raises:
            NothingDoneError: when it cannot be used.
        """
        try:
            return self._load(find(self.model or DEFAULT_MODEL))
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            hint = " (--model chooses another)" if self.model is None else ""
            raise NothingDoneError(message(error) + hint) from error

    def check_for_files(self) -> None:
        """Check that there is some model to decode files with.

        Raises:
            NothingDoneError: when there is none.
        """
        if self.model is None and not self.known:
            self.for_images()

    def for_file(self, header: Header) -> Codec:
        """Return the codec that decodes a file: the chosen one, else the known one that its header names.

        Raises:
            WrongWeightsError: when the chosen one did not make it, or none that is known.
            WeightsError: when the known one cannot be used.
        """
        fits = model_of(header, self.known)
        if self.model is None:
            if fits is None:
                raise WrongWeightsError(
                    f"written with the weights {header.fingerprint.hex()}, which no known model has; "
                    "give their file with --model"
                )
            return self._load(fits.file)
        codec = self._load(find(self.model))
        if codec.fingerprint != header.fingerprint:
            hint = (
                "which no known model has; give their file with --model"
                if fits is None
                else f"those of the model {fits.name!r}: decode it with --model {fits.name}"
            )
            raise WrongWeightsError(
                f"written with the weights {header.fingerprint.hex()}, {hint} "
                f"({self.model} has {codec.fingerprint.hex()})"
            )
        return codec

    def _load(self, file: Path) -> Codec:
        if file not in self.loaded:
            try:
                weights = assemble(file, self.encoder, self.decoder)
                self.loaded[file] = Codec(weights, choose_device(self.device), self.precision, self.memory)
            except WeightsError as error:
                # Messages of a codec do not name the file that it came from.
                text = str(error)
                raise WeightsError(text if str(file) in text else f"{file}: {text}") from error
        return self.loaded[file]
