"""The codecs of a command: catalogue models, and the model that a file was made with."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from glc.cli.errors import NothingDoneError, message
from glc.codec.bitstream import Header
from glc.codec.weights.catalog import DEFAULT_MODEL, FOLDER_VARIABLE, catalog, find, made_for
from glc.codec.weights.labels import CodecLabel, Kind, kind_of, read_header
from glc.errors import BackendError, WeightsError, WrongWeightsError

if TYPE_CHECKING:
    from glc.codec.base import BaseCodec
    from glc.latent_optimization import LatentOptimizer


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

    def variants(self, kind: Kind) -> list[str]:
        """Return the names of the encoder or decoder variants made for this model."""
        return list(made_for(self.fingerprint, kind))

    def made(self, header: Header) -> bool:
        """Whether a file with this header was made with this model."""
        return self.fingerprint.startswith(header.fingerprint.hex())


def known_models() -> tuple[list[KnownModel], list[str]]:
    """Return the catalogue's models, and a line for each file that is not a model."""
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
    header = read_header(file)
    kind = kind_of(header)
    if kind is not CodecLabel:
        label = kind.parse(header)
        raise header.error(f"not a codec; it is {label.USE.format(self=label)}")
    fingerprint = header.metadata.get("fingerprint", "")
    return KnownModel(name, file, fingerprint, CodecLabel.rate_points(header), file.stat().st_size)


def model_of(header: Header, known: Iterable[KnownModel]) -> KnownModel | None:
    """Return the first of the known models that decodes a file with this header."""
    return next((model for model in known if model.made(header)), None)


@dataclass
class Codecs:
    """The codecs that a command uses, each loaded once.

    Args:
        model: name or file given by the user, or None.
        precision: number format, see `glc.load`.
        memory: limit in bytes, or None for the available memory.
        encoder: file or name of an encoder that replaces the codec's own, or None.
        decoder: file or name of a decoder that replaces the codec's own, or None.
        backend: see `glc.load`.
        files: number of files of the command; None for a job that runs long, see `choose_backend`.
        optimizes: whether latents will be optimised.

    Raises:
        NothingDoneError: the device does not exist, or the chosen model, encoder or decoder cannot be used.
    """

    model: str | None
    device: str
    precision: str = "auto"
    memory: int | None = None
    encoder: str | None = None
    decoder: str | None = None
    backend: str = "auto"
    files: int | None = None
    optimizes: bool = False
    loaded: dict[tuple[Path, str], "BaseCodec"] = field(default_factory=dict, init=False)
    lock: Lock = field(default_factory=Lock, init=False)
    """Files may be processed side by side."""
    known: list[KnownModel] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.known = known_models()[0]
        with _nothing_done():
            if self.chosen() == "torch":
                from glc.codec.codec import choose_device

                choose_device(self.device)
            named: list[tuple[Kind, str | None]] = [("encoder", self.encoder), ("decoder", self.decoder)]
            for kind, name in named:
                if name is not None:
                    self._check_variant(find(name, kind), kind)
            if self.model is not None:
                self._load(find(self.model))

    def chosen(self, pixels: int = 0) -> str:
        """Return the backend for an image of a number of pixels.

        Raises:
            ModuleNotFoundError: PyTorch is not installed.
        """
        from glc.codec.load import choose_backend

        # What only PyTorch can do: GPUs, bfloat16, row tiles within a limit, gradients.
        asked = self.device not in ("auto", "cpu") or self.precision == "bfloat16"
        long = asked or self.memory is not None or self.optimizes
        return choose_backend(self.backend, None if long else self.files, pixels)

    def device_type(self) -> str:
        """Return the type of the device that small images run on."""
        if self.chosen() == "onnx":
            return "cpu"
        from glc.codec.codec import choose_device

        return choose_device(self.device).type

    def _check_variant(self, file: Path, kind: Kind) -> None:
        if self.chosen() == "onnx":
            from glc.codec.onnx.weights import read_variant_arrays

            with suppress(BackendError):  # loading the codec decides what to do
                read_variant_arrays(file, kind)
            return
        from glc.codec.weights.variants import read_variant

        read_variant(file, kind)

    def for_images(self, pixels: int = 0) -> "BaseCodec":
        """Return the chosen codec, or the default one, for an image of a number of pixels.

        Raises:
            NothingDoneError: it cannot be used.
        """
        with _nothing_done("; choose another model with --model" if self.model is None else ""):
            return self._load(find(self.model or DEFAULT_MODEL), pixels)

    def check_for_files(self) -> None:
        """Check that at least one model can decode files.

        Raises:
            NothingDoneError: no model is available.
        """
        if self.model is None and not self.known:
            self.for_images()

    def for_file(self, header: Header) -> "BaseCodec":
        """Return the codec for a file: the chosen one, otherwise the known one that its header names.

        Raises:
            WrongWeightsError: the file was made with other weights, or with weights that are not known.
            WeightsError: the known codec cannot be used.
        """
        fits = model_of(header, self.known)
        if self.model is None:
            if fits is None:
                raise WrongWeightsError(
                    f"made with weights {header.fingerprint.hex()}, which match no known model; "
                    "give the weights file with --model"
                )
            return self._load(fits.file, header.width * header.height)
        codec = self._load(find(self.model), header.width * header.height)
        if codec.fingerprint != header.fingerprint:
            hint = (
                "give the weights file with --model"
                if fits is None
                else f"decode it with --model {fits.name}"
            )
            raise WrongWeightsError(
                f"made with weights {header.fingerprint.hex()}, but --model {self.model} has "
                f"{codec.fingerprint.hex()}; {hint}"
            )
        return codec

    def _load(self, file: Path, pixels: int = 0) -> "BaseCodec":
        backend = self.chosen(pixels)
        with self.lock:
            if (file, backend) not in self.loaded:
                try:
                    codec = self._load_on(backend, file)
                except BackendError:
                    from glc.codec.load import has_torch

                    if self.backend != "auto" or not has_torch():
                        raise
                    codec = self._load_on("torch", file)
                self.loaded[file, backend] = codec
            return self.loaded[file, backend]

    def _load_on(self, backend: str, file: Path) -> "BaseCodec":
        from glc.codec.load import load

        try:
            return load(
                file,
                self.device,
                backend=backend,
                encoder=self.encoder,
                decoder=self.decoder,
                precision=self.precision,
                memory=self.memory,
            )
        except WeightsError as error:
            # A codec's messages do not name its weights file.
            text = str(error)
            raise type(error)(text if str(file) in text else f"{file}: {text}") from error


@contextmanager
def _nothing_done(hint: str = "") -> Iterator[None]:
    """Turn errors of loading a codec into `NothingDoneError`."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        raise NothingDoneError(message(error) + hint) from error


def make_optimizer(steps: int, weights_dir: str | None) -> "LatentOptimizer | None":
    """Return a latent optimiser of a number of steps, or None for 0.

    Raises:
        NothingDoneError: LPIPS or its weights are missing.
    """
    if not steps:
        return None
    try:
        from glc.latent_optimization import LatentOptimizer

        return LatentOptimizer(steps, weights_dir=weights_dir)
    except ImportError as error:
        wanted = f"--optimize-latent needs the package {error.name}: pip install 'glc-codec[eval]'"
        raise NothingDoneError(wanted) from error
    except (ValueError, OSError, RuntimeError) as error:
        raise NothingDoneError(f"--optimize-latent: {message(error)}; or --lpips-weights FOLDER") from error
