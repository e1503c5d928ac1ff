"""The codec: images to files and back; `load` makes one from the names or files of its networks."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from glc.codec import bitstream
from glc.codec.bitstream import DEFAULT_LIMIT, FINGERPRINT_BYTES, MAX_RATES, RATE_ONE, Header
from glc.codec.entropy.latent_coding import Decoded, Symbols, make_latent_codec
from glc.codec.rate_search import TOLERANCE, search
from glc.codec.runtime.defaults import standard_defaults
from glc.codec.runtime.networks import ImageNetworks, Size
from glc.codec.runtime.resources import choose_precision, parse_memory
from glc.codec.stages import ENTROPY_CODING, Observer, Stages
from glc.codec.weights.catalog import DEFAULT_MODEL, attach, find, read_variant
from glc.codec.weights.export import read_codec
from glc.codec.weights.file import Kind, Weights, read_weights
from glc.codec.weights.trust import Trust
from glc.data.images import ImageLike, padded_size, to_input
from glc.errors import (
    CorruptFileError,
    InexactError,
    NotFiniteError,
    TargetError,
    WeightsError,
    WrongWeightsError,
)
from glc.models.coder import IndicesMapCoder
from glc.models.glc import GLC


class TargetWarning(UserWarning):
    """The file is more than 3 % below its target: quality 100 needs no more, or no rate point is closer."""


class LatentOptimization(Protocol):
    """Optimises E's latent for one image, such as `glc.latent_optimization.LatentOptimizer`."""

    def __call__(
        self, model: GLC, x: Tensor, latent: Tensor, rate_index: float, memory: int | None
    ) -> Tensor:
        """Return a latent for x `[1, 3, H, W]` in [-1, 1] at a rate index, using at most `memory` bytes."""
        ...


class Codec:
    """Compresses images to `.glc` files and decompresses them.

    ```
    image -- pad --> x --E--> l --g_a--> y --+--> z, y as integers --> payload --> file
                                             |    (probabilities from integer networks)
    image <-- crop -- x_hat <--D-- l_hat <--g_s-- y_hat <--------------------------'

    compress   = encode_latent (x to l), entropy_encode (l to file)
    decompress = entropy_decode (file to l_hat), decode_latent (l_hat to image)
    ```

    The integers in a file decode identically on every machine. E, D, g_a and g_s are ordinary floating
    point: decoded images differ between machines by rounding only. All methods are thread-safe.

    Args:
        weights: from `glc.codec.weights.file.read_weights`.
        device: where the networks run.
        precision: "auto", "float32" or "bfloat16" for E and D, see `choose_precision`; it does not change
            the integers that a file decodes to.
        memory: memory limit in bytes or as text such as "8GB"; None for the available memory.

    Raises:
        WeightsError: the weights do not describe a codec.
        ValueError: an unknown precision, or an invalid memory limit.
    """

    @standard_defaults()
    def __init__(
        self,
        weights: Weights,
        device: str | torch.device = "cpu",
        precision: str = "auto",
        memory: int | str | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = weights.model.to(self.device).eval().requires_grad_(False)
        self.weights = weights
        self.stage = Stages()
        limit = parse_memory(memory) if isinstance(memory, str) else memory
        precisions = choose_precision(precision, self.device)
        self.networks = ImageNetworks(self.model, self.device, precisions, limit, weights.files, self.stage)
        """E and D, in their precision and tiled to the memory limit."""
        if self.model.num_rates > MAX_RATES:
            raise WeightsError(
                f"{weights.source}: a codec has at most {MAX_RATES} rate points, not {self.model.num_rates}"
            )
        if self.model.encoder.downsampling != self.model.decoder.downsampling:
            raise WeightsError(
                f"{weights.source}: encoder downsampling {self.model.encoder.downsampling} differs from "
                f"decoder downsampling {self.model.decoder.downsampling}"
            )
        # Indices-map coding has no rate points between two codebooks.
        self._unit = RATE_ONE if isinstance(self.model.coder, IndicesMapCoder) else 1
        try:
            self.latent_codec = make_latent_codec(self.model.coder, weights.tables, self.device, self.stage)
            """The coder's integer networks and its entropy coder."""
        except (InexactError, ValueError) as error:
            raise WeightsError(f"{weights.source}: cannot encode files: {error}") from error
        self.networks.release()
        self._load_again: partial[Codec] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy a codec by its files; one of weights in memory raises TypeError."""
        if self._load_again is None:
            raise TypeError("a Codec of weights in memory is not pickled or copied; use glc.load(FILE)")
        return self._load_again, ()

    @property
    def fingerprint(self) -> bytes:
        """The bytes that identify these weights in `.glc` files."""
        return bytes.fromhex(self.weights.fingerprint)[:FINGERPRINT_BYTES]

    @standard_defaults()
    def compress(
        self,
        image: ImageLike,
        quality: float = 50,
        *,
        target_bpp: float | None = None,
        target_size: int | None = None,
        optimize_latent: LatentOptimization | None = None,
    ) -> bytes:
        """Return the file of an image.

        Args:
            image: the image; see `glc.data.images` for alpha, 16 bits and animations.
            quality: 0 to 100, linear from the lowest trained rate point to the highest.
            target_bpp: instead of a quality: maximum bits per pixel, header included. The file is at most 3 %
                smaller.
            target_size: the same in bytes.
            optimize_latent: optimises E's latent for this image at the file's rate index (with a target: at
                the rate index that E's latent needs).

        Raises:
            ImageError: the image cannot be read.
            ValueError: the image, the quality or the target is out of range.
            TargetError: quality 0 exceeds the target.
            MemoryLimitError: the image needs more memory than the limit.

        Warns:
            TargetWarning: the file stays more than 3 % below its target.
        """
        if target_bpp is not None and target_size is not None:
            raise ValueError("give target_bpp or target_size, not both")
        x = to_input(image)
        height, width = x.shape[-2:]
        if target_bpp is not None and not 0 < target_bpp <= 10_000:
            raise ValueError(f"target_bpp must be positive and at most 10,000, got {target_bpp}")
        if target_size is not None and not 1 <= target_size <= 1 << 40:
            raise ValueError(f"target_size must be a positive number of bytes, got {target_size}")
        target = target_size if target_bpp is None else target_bpp * height * width / 8
        with torch.inference_mode():
            latent = self.encode_latent([x])
            if target is None:
                rate_index = self.rate_index(quality)
                if optimize_latent is not None:
                    latent = self._improved(optimize_latent, x, latent, rate_index)
                return self.entropy_encode(latent, [(height, width)], rate_index)[0][0]
            rate_index, data = self._search(latent, x, target)
            if optimize_latent is not None:
                # The optimised latent may need more bits than E's: keep E's file where it misses the target.
                with suppress(TargetError):
                    latent = self._improved(optimize_latent, x, latent, rate_index)
                    rate_index, data = self._search(latent, x, target)
        if len(data) < (1 - TOLERANCE) * target:
            highest = rate_index == (self.model.num_rates - 1) * RATE_ONE
            warnings.warn(
                f"{len(data)} bytes ({8 * len(data) / (height * width):.4f} bpp, quality "
                f"{self.quality_of(rate_index):.1f}) is the largest file below {int(target)} bytes: "
                f"{'quality 100 needs no more' if highest else 'the next rate point exceeds it'}",
                TargetWarning,
                stacklevel=3,  # past the decorator
            )
        return data

    @standard_defaults()
    def compress_batch(self, images: Sequence[ImageLike], quality: float = 50) -> list[bytes]:
        """Return the files of images of one padded size, encoded as a batch; see `compress`."""
        inputs = [to_input(image) for image in images]
        sizes = [(x.shape[-2], x.shape[-1]) for x in inputs]
        rate_index = self.rate_index(quality)
        return self.entropy_encode(self.encode_latent(inputs), sizes, rate_index)[0] if inputs else []

    def decompress(self, data: bytes, *, max_pixels: int = DEFAULT_LIMIT) -> Image.Image:
        """Return the image in a file.

        Args:
            data: the complete file.
            max_pixels: largest image to accept, width times height.

        Raises:
            BitstreamError: the file cannot be decoded; its subclasses tell the reasons apart.
            MemoryLimitError: the image needs more memory than the limit.
        """
        return self.decompress_batch([data], max_pixels=max_pixels)[0]

    @standard_defaults()
    def decompress_batch(
        self, files: Sequence[bytes], *, max_pixels: int = DEFAULT_LIMIT
    ) -> list[Image.Image]:
        """Return the images in files of one padded size, decoded as a batch; see `decompress`."""
        if not files:
            return []
        decoded, sizes = self.entropy_decode(files, max_pixels=max_pixels)
        return self.decode_latent(decoded.latent_hat, sizes)

    @standard_defaults()
    @torch.inference_mode()
    def encode_latent(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return E's latents l `[B, C, h, w]` of images: the first of the two stages of `compress`.

        Args:
            inputs: from `glc.data.images.to_input`, of one padded size.

        Raises:
            ValueError: the padded sizes differ.
            MemoryLimitError: an image needs more memory than the limit.
        """
        if len({padded_size(x.shape[-2], x.shape[-1], self.model.stride) for x in inputs}) > 1:
            raise ValueError("the images of a batch must have one size after padding to the model's stride")
        return self.networks.encode(inputs)

    @standard_defaults()
    @torch.inference_mode()
    def entropy_encode(
        self, latent: Tensor, sizes: Sequence[Size], rate_index: int
    ) -> tuple[list[bytes], Symbols]:
        """Return the files of latents, and their integers: the second stage of `compress`.

        Args:
            latent: l `[B, C, h, w]`, from `encode_latent`.
            sizes: height and width in pixels of each image.
            rate_index: in units of 1 / 4096, see `rate_index`.

        Raises:
            MemoryLimitError: the entropy model needs more memory than the limit.
        """
        rates = latent.new_full((len(latent),), rate_index / RATE_ONE)
        with self._coding(len(latent), (latent.shape[-2], latent.shape[-1])):
            payloads, symbols = self.latent_codec.encode(latent, rates)
        headers = (
            Header(fingerprint=self.fingerprint, width=w, height=h, rate_index=rate_index) for h, w in sizes
        )
        return [bitstream.pack(*each) for each in zip(headers, payloads, strict=True)], symbols

    @standard_defaults()
    @torch.inference_mode()
    def entropy_decode(
        self, files: Sequence[bytes], *, max_pixels: int = DEFAULT_LIMIT
    ) -> tuple[Decoded, list[Size]]:
        """Return the integers and latents l_hat in files of one padded size, and the sizes of their images.

        The first of the two stages of `decompress`.

        Raises:
            BitstreamError: a file cannot be decoded.
            ValueError: the padded sizes differ.
            MemoryLimitError: the entropy model needs more memory than the limit.
        """
        headers, payloads = self._open(files, max_pixels)
        size = self._latent_size(headers[0])
        with self._coding(len(headers), size):
            decoded = self.latent_codec.decode(payloads, size, self._rates(headers))
        return decoded, [(header.height, header.width) for header in headers]

    @standard_defaults()
    @torch.inference_mode()
    def decode_latent(self, latent_hat: Tensor, sizes: Sequence[Size]) -> list[Image.Image]:
        """Return D's images of latents l_hat `[B, C, h, w]`: the second stage of `decompress`.

        Args:
            latent_hat: from `entropy_decode`.
            sizes: height and width in pixels of each image.

        Raises:
            CorruptFileError: an image has non-finite pixels.
            MemoryLimitError: an image needs more memory than the limit.
        """
        try:
            return [Image.fromarray(image) for image in self.networks.decode(latent_hat, sizes)]
        except NotFiniteError as error:
            raise CorruptFileError(
                f"corrupt file: the decoded image has non-finite pixels ({error})"
            ) from error

    def observe(self, observer: Observer) -> AbstractContextManager[None]:
        """Call an observer around each stage that runs within the block; see `glc.codec.stages`.

        The stages are `E`, `D`, `refiner` and `entropy coding`, and within the latter `g_a`, `h_a, C_h`,
        `integer networks` and `g_s`; of an `IndicesMapCoder`, `codebook search`.
        """
        return self.stage.observe(observer)

    def symbols(self, data: bytes, *, max_pixels: int = DEFAULT_LIMIT) -> Symbols:
        """Return the integers in a file; they are the same on every machine.

        Raises:
            BitstreamError: the file cannot be decoded.
            MemoryLimitError: the entropy model needs more memory than the limit.
        """
        return self.entropy_decode([data], max_pixels=max_pixels)[0].symbols

    @standard_defaults()
    def decode_z(self, data: bytes, *, max_pixels: int = DEFAULT_LIMIT) -> Image.Image:
        """Return the image decoded from the hyper-latent alone, with all symbols of y zero (paper figure 5).

        Raises:
            BitstreamError: the file cannot be decoded.
            ValueError: the model has no hyper-latent.
            MemoryLimitError: the image needs more memory than the limit.
        """
        headers, payloads = self._open([data], max_pixels)
        with torch.inference_mode():
            size, rate_index = self._latent_size(headers[0]), self._rates(headers)
            with self._coding(1, size):
                latent_hat = self.latent_codec.decode_z(payloads, size, rate_index)
            return self.decode_latent(latent_hat, [(headers[0].height, headers[0].width)])[0]

    @standard_defaults()
    def from_symbols(self, symbols: Symbols, size: tuple[int, int], rate_index: int) -> bytes:
        """Return the file that holds given integers; the inverse of `symbols`.

        Only the integer networks run: the bytes are the same on every machine.

        Args:
            symbols: of one image, as `symbols` returns them.
            size: height and width of the image in pixels.
            rate_index: in units of 1 / 4096, see `rate_index`.

        Raises:
            ValueError: the symbols do not fit an image of that size at that rate index.
            MemoryLimitError: the entropy model needs more memory than the limit.
        """
        if not 0 <= rate_index <= (self.model.num_rates - 1) * RATE_ONE or rate_index % self._unit:
            raise ValueError(f"the model has no rate index {rate_index / RATE_ONE}")
        header = Header(fingerprint=self.fingerprint, width=size[1], height=size[0], rate_index=rate_index)
        latent_size = self._latent_size(header)
        self.latent_codec.check(symbols, latent_size)
        with torch.inference_mode(), self._coding(1, latent_size):
            (payload,) = self.latent_codec.write(symbols, self._rates([header]))
        return bitstream.pack(header, payload)

    def rate_index(self, quality: float) -> int:
        """Return the rate index of a quality from 0 to 100, in units of 1 / 4096.

        Raises:
            ValueError: the quality is out of range.
        """
        if not 0 <= quality <= 100:
            raise ValueError(f"quality must lie in [0, 100], got {quality}")
        steps = (self.model.num_rates - 1) * RATE_ONE // self._unit
        return round(quality / 100 * steps) * self._unit

    def quality_of(self, rate_index: int) -> float:
        """Return the quality of a rate index in units of 1 / 4096; 0 if the model has one rate point."""
        return 100 * rate_index / max(1, (self.model.num_rates - 1) * RATE_ONE)

    @contextmanager
    def _coding(self, count: int, size: Size) -> Iterator[None]:
        with self.networks.coding(self.latent_codec.memory(count, size)), self.stage(ENTROPY_CODING):
            yield

    def _improved(self, optimize: LatentOptimization, x: Tensor, latent: Tensor, rate_index: int) -> Tensor:
        with self.networks.searching():
            limit = self.networks.limit(self.model)
            return optimize(self.model, self.networks.padded(x), latent, rate_index / RATE_ONE, limit)

    def _search(self, latent: Tensor, x: Tensor, target: float) -> tuple[int, bytes]:
        """Return the rate index (in units of 1 / 4096) of the largest file below a target, and the file."""
        height, width = x.shape[-2:]
        made: dict[int, bytes] = {}

        def size_of(setting: int) -> int:
            made[setting] = self.entropy_encode(latent, [(height, width)], setting * self._unit)[0][0]
            return len(made[setting])

        top = (self.model.num_rates - 1) * RATE_ONE // self._unit
        try:
            found = search(size_of, top, target)
        except TargetError as error:
            bpp = 8 * len(made[0]) / (height * width)
            raise TargetError(f"{error} ({bpp:.4f} bpp, quality 0)") from None
        return found * self._unit, made[found]

    def _open(self, files: Sequence[bytes], max_pixels: int) -> tuple[list[Header], list[bytes]]:
        headers, payloads = [], []
        for data in files:
            header, payload = bitstream.unpack(data, max_pixels)
            if header.fingerprint != self.fingerprint:
                raise WrongWeightsError(
                    f"the file was written with weights {header.fingerprint.hex()}; "
                    f"this model's are {self.fingerprint.hex()}"
                )
            if header.rate_index > (self.model.num_rates - 1) * RATE_ONE or header.rate_index % self._unit:
                raise CorruptFileError(
                    f"corrupt file: the model has no rate index {header.rate_index / RATE_ONE}"
                )
            headers.append(header)
            payloads.append(payload)
        if len({self._latent_size(header) for header in headers}) > 1:
            raise ValueError("the images of a batch must have one size after padding to the model's stride")
        return headers, payloads

    def _latent_size(self, header: Header) -> Size:
        height, width = padded_size(header.height, header.width, self.model.stride)
        factor = self.model.decoder.downsampling
        return height // factor, width // factor

    def _rates(self, headers: Sequence[Header]) -> Tensor:
        return torch.tensor([header.rate_index / RATE_ONE for header in headers], device=self.device)


def choose_device(name: str | torch.device) -> torch.device:
    """Return a device by name; "auto" is a GPU if there is one, else the CPU.

    Raises:
        ValueError: the device is not available.
    """
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(name)!r} is not available: {str(error).splitlines()[0]}") from error
    return device


def load(
    model: str | Path = DEFAULT_MODEL,
    device: str | torch.device = "auto",
    *,
    encoder: str | Path | None = None,
    decoder: str | Path | None = None,
    precision: str = "auto",
    memory: int | str | None = None,
    trust: Trust = (),
) -> Codec:
    """Return the codec of a weights file or of a bundled model.

    Args:
        model: a file, or a name (`glc models` lists them), by default the bundled codec; or a checkpoint of
            stage II or III, or the folder of its run, for the codec that `glc export` would make of it.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        encoder: file or name of an encoder variant for this model (restoration, for example) to compress
            with.
        decoder: file or name of a decoder variant (stylization, for example) to decompress with.
        precision: "auto", "float32" or "bfloat16" for E and D; any precision reads any file.
        memory: memory limit in bytes or as text such as "8GB"; None for the available memory.
        trust: packages whose networks the files may name; importing runs code, see `glc.codec.weights.trust`.

    Raises:
        WeightsError: the model does not exist, its file cannot be used or names networks of a package that is
            not trusted, or the encoder or decoder was made for another model.
        ValueError: the device is not available, or the precision or memory limit is invalid.
    """
    trained = Path(model).suffix == ".ckpt" or (Path(model) / "checkpoints").is_dir()
    file = Path(model) if trained else find(model)
    named = {"encoder": encoder, "decoder": decoder}
    files = {kind: name and find(name, kind).resolve() for kind, name in named.items()}
    trust = trust if isinstance(trust, str) else tuple(trust)
    codec = Codec(assemble(file, **files, trust=trust), choose_device(device), precision, memory)
    options: dict[str, Any] = {**files, "precision": precision, "memory": memory, "trust": trust}
    codec._load_again = partial(_again, codec.weights.fingerprint, file.resolve(), codec.device, **options)
    return codec


def _again(fingerprint: str, file: Path, device: torch.device, **options: Any) -> Codec:
    codec = load(file, device, **options)
    if codec.weights.fingerprint != fingerprint:
        raise WeightsError(f"{file}: holds another codec than when the Codec was pickled")
    return codec


@standard_defaults()
def assemble(
    file: Path, encoder: str | Path | None = None, decoder: str | Path | None = None, trust: Trust = ()
) -> Weights:
    """Return the weights in a codec's file, with an encoder or decoder variant in place of its own.

    Tensors are memory-mapped where possible, see `glc.codec.weights.mmap`.
    """
    trained = file.suffix == ".ckpt" or file.is_dir()
    weights = read_codec(file, trust) if trained else read_weights(file, mapped=True, trust=trust)
    named: list[tuple[Kind, str | Path | None]] = [("encoder", encoder), ("decoder", decoder)]
    chosen = [(find(name, kind), kind) for kind, name in named if name is not None]
    return attach(weights, *(read_variant(path, kind, mapped=True, trust=trust) for path, kind in chosen))
