"""What codecs have in common, with PyTorch or without: files, rates and targets. Needs no PyTorch."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from glc.codec import bitstream
from glc.codec.bitstream import DEFAULT_LIMIT, FINGERPRINT_BYTES, MAX_RATES, RATE_ONE, Header
from glc.codec.entropy.symbols import Decoded, Symbols
from glc.codec.rate_search import TOLERANCE, search
from glc.codec.stages import Observer, Stages
from glc.codec.uncertainty import DRAWS, Uncertainty, deviation
from glc.data.images import ImageLike, ImageSource, padded_size
from glc.data.images.masks import block_means, read_mask
from glc.errors import CorruptFileError, NotFiniteError, TargetError, WeightsError, WrongWeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from glc.models.glc import GLC

Size = tuple[int, int]
"""Height and width in pixels."""


class TargetWarning(UserWarning):
    """The file is more than 3 % below its target: quality 100 needs no more, or no rate point is closer."""


class LatentOptimization(Protocol):
    """Optimises E's latent for one image, such as `glc.latent_optimization.LatentOptimizer`."""

    def __call__(
        self, model: "GLC", x: "Tensor", latent: "Tensor", rate_index: float, memory: int | None
    ) -> "Tensor":
        """Return a latent for x `[1, 3, H, W]` in [-1, 1] at a rate index, using at most `memory` bytes."""
        ...


class LatentCodec(Protocol):
    """Codes latents l `[B, C, h, w]` to payloads at rate indexes `[B]`; arrays are those of the backend."""

    def memory(self, batch: int, size: Size) -> int:
        """Return the bytes of the maps for a batch of latents of h x w."""
        ...

    def encode(
        self, latent: Any, rate_index: Any, weights: np.ndarray | None = None
    ) -> tuple[list[bytes], Symbols]:
        """Return the payloads and the symbols of latents; weights: see `glc.codec.entropy.region`."""
        ...

    def decode_cell(
        self, payloads: Sequence[bytes], size: Size, rate_index: Any, draws: int
    ) -> Iterator[Any]:
        """Yield the latents of payloads, then those of other points in the quantisation cells of y."""
        ...

    def decode(self, payloads: Sequence[bytes], size: Size, rate_index: Any) -> Decoded:
        """Return the symbols and latents of payloads."""
        ...

    def decode_z(self, payloads: Sequence[bytes], size: Size, rate_index: Any) -> Any:
        """Return the latents that the hyper-latents alone predict."""
        ...

    def check(self, symbols: Symbols, size: Size) -> None:
        """Check that symbols are valid for one latent."""
        ...

    def write(self, symbols: Symbols, rate_index: Any) -> list[bytes]:
        """Return the payloads of given symbols."""
        ...


class BaseCodec(ABC):
    """Compresses images to `.glc` files and decompresses them.

    ```
    image -- pad --> x --E--> l --g_a--> y --+--> z, y as integers --> payload --> file
                                             |    (probabilities from integer networks)
    image <-- crop -- x_hat <--D-- l_hat <--g_s-- y_hat <--------------------------'

    compress   = encode_latent (x to l), entropy_encode (l to file)
    decompress = entropy_decode (file to l_hat), decode_latent (l_hat to image)
    ```

    The integers in a file decode identically on every machine and with each backend. E, D, g_a and g_s are
    ordinary floating point: decoded images differ between machines by rounding only. All methods are
    thread-safe.

    Args:
        source: the weights' file, for messages.
        fingerprint: of the weights, 64 hexadecimal digits.
        num_rates: K.
        downsampling: f of E and of D.
        stride: sides of the padded image are multiples of it.
        fractional: whether rate indexes between the K points exist.

    Raises:
        WeightsError: there are too many rate points, or E and D differ in f.
    """

    backend: ClassVar[str]
    """`torch` or `onnx`."""
    model: Any
    """The networks, plain PyTorch (`glc.models.glc.GLC`). `onnx` has none: an `AttributeError`."""
    device: Any
    """Where the networks run; the backend `onnx` has "cpu"."""
    weights: Any
    """The weights, with at least `fingerprint` and `rates`."""
    latent_codec: LatentCodec
    """The coder's integer networks and its entropy coder."""

    def __init__(
        self,
        *,
        source: str,
        fingerprint: str,
        num_rates: int,
        downsampling: Size,
        stride: int,
        fractional: bool,
    ) -> None:
        self.source = source
        self.fingerprint = bytes.fromhex(fingerprint)[:FINGERPRINT_BYTES]
        """The bytes that identify these weights in `.glc` files."""
        self.num_rates = num_rates
        """K: the number of trained rate points."""
        self.stage = Stages()
        self.load_again: Callable[[], BaseCodec] | None = None
        """Loads the same codec from its files; None for weights in memory."""
        if num_rates > MAX_RATES:
            raise WeightsError(f"{source}: a codec has at most {MAX_RATES} rate points, not {num_rates}")
        if downsampling[0] != downsampling[1]:
            raise WeightsError(
                f"{source}: encoder downsampling {downsampling[0]} differs from "
                f"decoder downsampling {downsampling[1]}"
            )
        self.stride, self._downsampling = stride, downsampling[0]
        # Indices-map coding has no rate points between two codebooks.
        self._unit = 1 if fractional else RATE_ONE

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy a codec by its files.

        Raises:
            TypeError: its weights are in memory, not in files.
        """
        if self.load_again is None:
            raise TypeError("a codec of weights in memory is not pickled or copied; use glc.load(FILE)")
        return self.load_again, ()

    @abstractmethod
    def _to_input(self, image: ImageLike) -> Any:
        """Return an image as `[1, 3, H, W]`, uint8 levels or float32 in [-1, 1]."""

    @abstractmethod
    def _encode(self, inputs: Sequence[Any]) -> Any:
        """Return E's latents of inputs of one padded size."""

    @abstractmethod
    def _decode(self, latent_hat: Any, sizes: Sequence[Size]) -> list[np.ndarray]:
        """Return D's images, uint8 `[H, W, 3]`, for sizes without padding."""

    @abstractmethod
    def _rates(self, rate_indexes: Sequence[int]) -> Any:
        """Return rate indexes in units of 1 / 4096 as an array of rate indexes."""

    @abstractmethod
    def _coding(self, count: int, size: Size) -> AbstractContextManager[None]:
        """Return the context in which the latent codec runs: checks its memory, reports its stage."""

    @abstractmethod
    def _improved(self, optimize: LatentOptimization, x: Any, latent: Any, rate_index: int) -> Any:
        """Return an optimised latent."""

    def compress(
        self,
        image: ImageLike,
        quality: float = 50,
        *,
        target_bpp: float | None = None,
        target_size: int | None = None,
        optimize_latent: LatentOptimization | None = None,
        roi: ImageSource | np.ndarray | None = None,
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
            roi: mask of the region of interest, of the image's size, see `glc.data.images.masks.read_mask`:
                fewer bits are spent where it is dark. At a quality, the file is smaller; with a target, the
                region has a higher quality.

        Raises:
            ImageError: the image or the mask cannot be read.
            ValueError: the image, the quality or the target is out of range.
            TargetError: quality 0 exceeds the target.
            MemoryLimitError: the image needs more memory than the limit.

        Warns:
            TargetWarning: the file stays more than 3 % below its target.
        """
        if target_bpp is not None and target_size is not None:
            raise ValueError("give target_bpp or target_size, not both")
        x = self._to_input(image)
        del image  # freed, if the caller does not keep it
        height, width = size = x.shape[-2:]
        if target_bpp is not None and not 0 < target_bpp <= 10_000:
            raise ValueError(f"target_bpp must be positive and at most 10,000, got {target_bpp}")
        if target_size is not None and not 1 <= target_size <= 1 << 40:
            raise ValueError(f"target_size must be a positive number of bytes, got {target_size}")
        target = target_size if target_bpp is None else target_bpp * height * width / 8
        weights = None
        if roi is not None:
            weights = block_means(read_mask(roi, (height, width)), self.stride, self._downsampling)
        latent = self.encode_latent([x])
        if optimize_latent is None:
            x = None
        if target is None:
            rate_index = self.rate_index(quality)
            if optimize_latent is not None:
                latent = self._improved(optimize_latent, x, latent, rate_index)
            return self.entropy_encode(latent, [size], rate_index, weights)[0][0]
        rate_index, data = self._search(latent, size, target, weights)
        if optimize_latent is not None:
            # The optimised latent may need more bits than E's: keep E's file where it misses the target.
            with suppress(TargetError):
                latent = self._improved(optimize_latent, x, latent, rate_index)
                rate_index, data = self._search(latent, size, target, weights)
        if len(data) < (1 - TOLERANCE) * target:
            highest = rate_index == (self.num_rates - 1) * RATE_ONE
            warnings.warn(
                f"{len(data)} bytes ({8 * len(data) / (height * width):.4f} bpp, quality "
                f"{self.quality_of(rate_index):.1f}) is the largest file below {int(target)} bytes: "
                f"{'quality 100 needs no more' if highest else 'the next rate point exceeds it'}",
                TargetWarning,
                stacklevel=2,
            )
        return data

    def compress_batch(self, images: Sequence[ImageLike], quality: float = 50) -> list[bytes]:
        """Return the files of images of one padded size, encoded as a batch; see `compress`."""
        inputs = [self._to_input(image) for image in images]
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

    def decompress_batch(
        self, files: Sequence[bytes], *, max_pixels: int = DEFAULT_LIMIT
    ) -> list[Image.Image]:
        """Return the images in files of one padded size, decoded as a batch; see `decompress`."""
        if not files:
            return []
        decoded, sizes = self.entropy_decode(files, max_pixels=max_pixels)
        latent_hat = decoded.latent_hat
        del decoded  # its symbols, before D needs the memory
        return self.decode_latent(latent_hat, sizes)

    def uncertainty(self, data: bytes, *, draws: int = DRAWS, max_pixels: int = DEFAULT_LIMIT) -> Uncertainty:
        """Return the image in a file, and how far it is determined by the file.

        The file determines the quantisation cell of each element of y. D's image of the cells' centres is the
        decoded one; its images of other points, the same on every machine, show what D makes up.

        Args:
            draws: number of other points; each takes the time of a D.

        Raises:
            BitstreamError: the file cannot be decoded.
            ValueError: `draws` is less than 1, or the model has no quantisation cells.
            MemoryLimitError: the image needs more memory than the limit.
        """
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        headers, payloads = self._open([data], max_pixels)
        size, sizes = self._latent_size(headers[0]), [(headers[0].height, headers[0].width)]
        with self._coding(1, size):
            rates = self._rates([headers[0].rate_index])
            latents = list(self.latent_codec.decode_cell(payloads, size, rates, draws))
        image, *others = (self.decode_latent(latent, sizes)[0] for latent in latents)
        return Uncertainty(image, deviation(np.asarray(image), [np.asarray(other) for other in others]))

    def encode_latent(self, inputs: Sequence[Any]) -> Any:
        """Return E's latents l `[B, C, h, w]` of images: the first of the two stages of `compress`.

        Args:
            inputs: from `glc.data.images.to_input`, of one padded size.

        Raises:
            ValueError: the padded sizes differ.
            MemoryLimitError: an image needs more memory than the limit.
        """
        if len({padded_size(x.shape[-2], x.shape[-1], self.stride) for x in inputs}) > 1:
            raise ValueError("the images of a batch must have one size after padding to the model's stride")
        return self._encode(inputs)

    def entropy_encode(
        self, latent: Any, sizes: Sequence[Size], rate_index: int, weights: np.ndarray | None = None
    ) -> tuple[list[bytes], Symbols]:
        """Return the files of latents, and their integers: the second stage of `compress`.

        Args:
            latent: l `[B, C, h, w]`, from `encode_latent`.
            sizes: height and width in pixels of each image.
            rate_index: in units of 1 / 4096, see `rate_index`.
            weights: `[h, w]` in [0, 1]: fewer bits are spent where they are low, see
                `glc.codec.entropy.region`.

        Raises:
            MemoryLimitError: the entropy model needs more memory than the limit.
            ValueError: weights are given, and the symbols have fixed lengths.
        """
        rates = self._rates([rate_index] * len(latent))
        with self._coding(len(latent), (latent.shape[-2], latent.shape[-1])):
            payloads, symbols = self.latent_codec.encode(latent, rates, weights)
        headers = (
            Header(fingerprint=self.fingerprint, width=w, height=h, rate_index=rate_index) for h, w in sizes
        )
        return [bitstream.pack(*each) for each in zip(headers, payloads, strict=True)], symbols

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
        rates = self._rates([header.rate_index for header in headers])
        with self._coding(len(headers), size):
            decoded = self.latent_codec.decode(payloads, size, rates)
        return decoded, [(header.height, header.width) for header in headers]

    def decode_latent(self, latent_hat: Any, sizes: Sequence[Size]) -> list[Image.Image]:
        """Return D's images of latents l_hat `[B, C, h, w]`: the second stage of `decompress`.

        Args:
            latent_hat: from `entropy_decode`.
            sizes: height and width in pixels of each image.

        Raises:
            CorruptFileError: an image has non-finite pixels.
            MemoryLimitError: an image needs more memory than the limit.
        """
        try:
            return [Image.fromarray(image) for image in self._decode(latent_hat, sizes)]
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

    def decode_z(self, data: bytes, *, max_pixels: int = DEFAULT_LIMIT) -> Image.Image:
        """Return the image decoded from the hyper-latent alone, with all symbols of y zero (paper figure 5).

        Raises:
            BitstreamError: the file cannot be decoded.
            ValueError: the model has no hyper-latent.
            MemoryLimitError: the image needs more memory than the limit.
        """
        headers, payloads = self._open([data], max_pixels)
        size, rate_index = self._latent_size(headers[0]), self._rates([headers[0].rate_index])
        with self._coding(1, size):
            latent_hat = self.latent_codec.decode_z(payloads, size, rate_index)
        return self.decode_latent(latent_hat, [(headers[0].height, headers[0].width)])[0]

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
        if not 0 <= rate_index <= (self.num_rates - 1) * RATE_ONE or rate_index % self._unit:
            raise ValueError(f"the model has no rate index {rate_index / RATE_ONE}")
        header = Header(fingerprint=self.fingerprint, width=size[1], height=size[0], rate_index=rate_index)
        latent_size = self._latent_size(header)
        self.latent_codec.check(symbols, latent_size)
        with self._coding(1, latent_size):
            (payload,) = self.latent_codec.write(symbols, self._rates([rate_index]))
        return bitstream.pack(header, payload)

    def rate_index(self, quality: float) -> int:
        """Return the rate index of a quality from 0 to 100, in units of 1 / 4096.

        Raises:
            ValueError: the quality is out of range.
        """
        if not 0 <= quality <= 100:
            raise ValueError(f"quality must lie in [0, 100], got {quality}")
        steps = (self.num_rates - 1) * RATE_ONE // self._unit
        return round(quality / 100 * steps) * self._unit

    def quality_of(self, rate_index: int) -> float:
        """Return the quality of a rate index in units of 1 / 4096; 0 if the model has one rate point."""
        return 100 * rate_index / max(1, (self.num_rates - 1) * RATE_ONE)

    def _search(
        self, latent: Any, size: Size, target: float, weights: np.ndarray | None
    ) -> tuple[int, bytes]:
        """Return the rate index (in units of 1 / 4096) of the largest file below a target, and the file."""
        made: dict[int, bytes] = {}

        def size_of(setting: int) -> int:
            files, _ = self.entropy_encode(latent, [size], setting * self._unit, weights)
            made[setting] = files[0]
            return len(files[0])

        top = (self.num_rates - 1) * RATE_ONE // self._unit
        try:
            found = search(size_of, top, target)
        except TargetError as error:
            bpp = 8 * len(made[0]) / (size[0] * size[1])
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
            if header.rate_index > (self.num_rates - 1) * RATE_ONE or header.rate_index % self._unit:
                raise CorruptFileError(
                    f"corrupt file: the model has no rate index {header.rate_index / RATE_ONE}"
                )
            headers.append(header)
            payloads.append(payload)
        if len({self._latent_size(header) for header in headers}) > 1:
            raise ValueError("the images of a batch must have one size after padding to the model's stride")
        return headers, payloads

    def _latent_size(self, header: Header) -> Size:
        height, width = padded_size(header.height, header.width, self.stride)
        return height // self._downsampling, width // self._downsampling
