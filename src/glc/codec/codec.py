"""The codec: images to files and back."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

import torch
from PIL import Image
from torch import Tensor

from glc.codec import bitstream
from glc.codec.bitstream import DEFAULT_LIMIT, FINGERPRINT_BYTES, MAX_RATES, RATE_ONE, Header
from glc.codec.entropy.latent_coding import Decoded, Symbols, make_latent_codec
from glc.codec.images import ImageLike, LatentOptimization, padded_size, to_input
from glc.codec.rate_search import TOLERANCE, search
from glc.codec.runtime.memory import parse_memory
from glc.codec.runtime.networks import ImageNetworks, Size
from glc.codec.runtime.precision import choose_precision
from glc.codec.stages import ENTROPY_CODING, Observer, Stages
from glc.codec.weights.file import Weights
from glc.errors import (
    DamagedError,
    InexactError,
    NotFiniteError,
    TargetError,
    WeightsError,
    WrongWeightsError,
)
from glc.models.coder import IndicesMapCoder


class TargetWarning(UserWarning):
    """The size asked for lies above what the model's best quality needs, or between two sizes that exist."""


class Codec:
    """Compresses images to `.glc` files and decompresses them.

    ```
    image -- pad --> x --E--> l --g_a--> y --+--> z, y as integers --> payload --> file
                                             |    (probabilities from integer networks)
    image <-- crop -- x_hat <--D-- l_hat <--g_s-- y_hat <--------------------------'

    compress   = encode_latent (x to l), entropy_encode (l to file)
    decompress = entropy_decode (file to l_hat), decode_latent (l_hat to image)
    ```

    What a file decodes to, its integers, does not depend on the machine. The networks outside of the
    probabilities are ordinary floating point: their images differ between machines by rounding only.
    All methods may be called from several threads at once.

    Args:
        weights: from `glc.codec.weights.file.read_weights`.
        device: where the networks run.
        precision: "auto", "float32" or "bfloat16" for E and D, see `choose_precision`; no file that exists
            decodes to other integers for it.
        memory: what the process may take, in bytes or as text such as "8GB"; None for what is free.

    Raises:
        WeightsError: when the weights cannot make a codec.
        ValueError: for another precision or no size of memory.
    """

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
        """E and D as they run."""
        if self.model.num_rates > MAX_RATES:
            raise WeightsError(
                f"{weights.source}: a codec has at most {MAX_RATES} rate points, not {self.model.num_rates}"
            )
        if self.model.encoder.downsampling != self.model.decoder.downsampling:
            raise WeightsError(f"{weights.source}: encoder and decoder differ in their downsampling")
        # Indices-map coding has no rate between two codebooks.
        self._unit = RATE_ONE if isinstance(self.model.coder, IndicesMapCoder) else 1
        try:
            self.latent_codec = make_latent_codec(self.model.coder, weights.tables, self.device, self.stage)
            """The coder as it runs: its integer networks and its entropy coder."""
        except (InexactError, ValueError) as error:
            raise WeightsError(f"{weights.source}: cannot be used for files: {error}") from error
        self.networks.release()

    @property
    def fingerprint(self) -> bytes:
        """The bytes by which files name these weights."""
        return bytes.fromhex(self.weights.fingerprint)[:FINGERPRINT_BYTES]

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
            image: the image; `glc.data.images` says what becomes of alpha, 16 bits and animations.
            quality: 0 to 100, from the lowest trained rate point to the highest and linearly between them.
            target_bpp: instead of a quality, bits per pixel of the whole file: it lands at most 3 % below.
            target_size: the same in bytes.
            optimize_latent: improves E's latent for this image at the file's rate point (with a target: at the
                rate point that E's latent needs for it).

        Raises:
            ImageError: when the image cannot be read.
            ValueError: when it, the quality or the target is out of range.
            TargetError: when even the lowest quality needs more than the target.
            MemoryLimitError: when the image needs more memory than may be used.

        Warns:
            TargetWarning: when the file stays more than 3 % below its target.
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
                rate = self.rate_of(quality)
                if optimize_latent is not None:
                    latent = self._improved(optimize_latent, x, latent, rate)
                return self.entropy_encode(latent, [(height, width)], rate)[0][0]
            rate, data = self._search(latent, x, target)
            if optimize_latent is not None:
                # The optimised latent may need more bits than E's: keep E's file where it misses the target.
                with suppress(TargetError):
                    latent = self._improved(optimize_latent, x, latent, rate)
                    rate, data = self._search(latent, x, target)
        if len(data) < (1 - TOLERANCE) * target:
            highest = rate == (self.model.num_rates - 1) * RATE_ONE
            warnings.warn(
                f"{len(data)} bytes ({8 * len(data) / (height * width):.4f} bpp, quality "
                f"{self.quality_of(rate):.1f}) is the nearest below {int(target)} bytes: "
                f"{'the best quality needs no more' if highest else 'no size lies between'}",
                TargetWarning,
                stacklevel=2,
            )
        return data

    def compress_batch(self, images: Sequence[ImageLike], quality: float = 50) -> list[bytes]:
        """Return the files of images that have one size once padded, coded together; see `compress`."""
        inputs = [to_input(image) for image in images]
        sizes = [(x.shape[-2], x.shape[-1]) for x in inputs]
        rate = self.rate_of(quality)
        return self.entropy_encode(self.encode_latent(inputs), sizes, rate)[0] if inputs else []

    def decompress(self, data: bytes, *, max_pixels: int = DEFAULT_LIMIT) -> Image.Image:
        """Return the image in a file.

        Args:
            data: the whole file.
            max_pixels: largest image to accept, width times height.

        Raises:
            BitstreamError: when the file cannot be decoded; its subclasses say why.
            MemoryLimitError: when the image needs more memory than may be used.
        """
        return self.decompress_batch([data], max_pixels=max_pixels)[0]

    def decompress_batch(
        self, files: Sequence[bytes], *, max_pixels: int = DEFAULT_LIMIT
    ) -> list[Image.Image]:
        """Return the images in files whose images have one size once padded; see `decompress`."""
        if not files:
            return []
        decoded, sizes = self.entropy_decode(files, max_pixels=max_pixels)
        return self.decode_latent(decoded.latent_hat, sizes)

    @torch.inference_mode()
    def encode_latent(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return E's latents l `[B, C, h, w]` of images: the first of the two stages of `compress`.

        Args:
            inputs: from `glc.codec.images.to_input`, of one size once padded.

        Raises:
            ValueError: when they are of several sizes.
            MemoryLimitError: when an image needs more memory than may be used.
        """
        if len({padded_size(x.shape[-2], x.shape[-1], self.model.stride) for x in inputs}) > 1:
            raise ValueError("the images of a batch must have one size once padded to the model's stride")
        return self.networks.encode(inputs)

    @torch.inference_mode()
    def entropy_encode(self, latent: Tensor, sizes: Sequence[Size], rate: int) -> tuple[list[bytes], Symbols]:
        """Return the files of latents, and the integers in them: the second stage of `compress`.

        Args:
            latent: l `[B, C, h, w]`, from `encode_latent`.
            sizes: height and width in pixels of each image.
            rate: rate point in units of 1 / 4096, see `rate_of`.

        Raises:
            MemoryLimitError: when the entropy model needs more memory than may be used.
        """
        rates = latent.new_full((len(latent),), rate / RATE_ONE)
        with self._coding(len(latent), (latent.shape[-2], latent.shape[-1])):
            payloads, symbols = self.latent_codec.encode(latent, rates)
        headers = (Header(fingerprint=self.fingerprint, width=w, height=h, rate=rate) for h, w in sizes)
        return [bitstream.pack(*each) for each in zip(headers, payloads, strict=True)], symbols

    @torch.inference_mode()
    def entropy_decode(
        self, files: Sequence[bytes], *, max_pixels: int = DEFAULT_LIMIT
    ) -> tuple[Decoded, list[Size]]:
        """Return the integers and latents l_hat in files of one padded size, and the sizes of their images.

        It is the first of the two stages of `decompress`.

        Raises:
            BitstreamError: when a file cannot be decoded.
            ValueError: when they are of several sizes.
            MemoryLimitError: when the entropy model needs more memory than may be used.
        """
        headers, payloads = self._open(files, max_pixels)
        size = self._latent_size(headers[0])
        with self._coding(len(headers), size):
            decoded = self.latent_codec.decode(payloads, size, self._rates(headers))
        return decoded, [(header.height, header.width) for header in headers]

    @torch.inference_mode()
    def decode_latent(self, latent_hat: Tensor, sizes: Sequence[Size]) -> list[Image.Image]:
        """Return D's images of latents l_hat `[B, C, h, w]`: the second stage of `decompress`.

        Args:
            latent_hat: from `entropy_decode`.
            sizes: height and width in pixels of each image.

        Raises:
            DamagedError: when an image has pixels that are not finite.
            MemoryLimitError: when an image needs more memory than may be used.
        """
        try:
            return [Image.fromarray(image) for image in self.networks.decode(latent_hat, sizes)]
        except NotFiniteError as error:
            raise DamagedError(f"corrupt file: the decoded image has non-finite pixels ({error})") from error

    def observe(self, observer: Observer) -> AbstractContextManager[None]:
        """Have an observer surround each stage that runs within the block; see `glc.codec.stages`.

        The stages are `E`, `D`, `refiner` and `entropy coding`, and within the latter `g_a`, `h_a, C_h`,
        `exact networks` and `g_s`; of an `IndicesMapCoder`, `search of codes`.
        """
        return self.stage.observe(observer)

    def symbols(self, data: bytes, *, max_pixels: int = DEFAULT_LIMIT) -> Symbols:
        """Return the integers in a file: they are the same on every machine.

        Raises:
            BitstreamError: when the file cannot be decoded.
            MemoryLimitError: when the image needs more memory than may be used.
        """
        return self.entropy_decode([data], max_pixels=max_pixels)[0].symbols

    def decode_z(self, data: bytes, *, max_pixels: int = DEFAULT_LIMIT) -> Image.Image:
        """Return the image that the hyper code alone predicts, all symbols of y taken as zero (figure 5).

        Raises:
            BitstreamError: when the file cannot be decoded.
            ValueError: when the model has no hyper code.
            MemoryLimitError: when the image needs more memory than may be used.
        """
        headers, payloads = self._open([data], max_pixels)
        with torch.inference_mode():
            size, rate = self._latent_size(headers[0]), self._rates(headers)
            with self._coding(1, size):
                latent_hat = self.latent_codec.decode_z(payloads, size, rate)
            return self.decode_latent(latent_hat, [(headers[0].height, headers[0].width)])[0]

    def from_symbols(self, symbols: Symbols, size: tuple[int, int], rate: int) -> bytes:
        """Return the file that holds given integers; `symbols` undoes it.

        No network outside of the exact ones is used: the bytes are the same on every machine.

        Args:
            symbols: of one image, as `symbols` returns them.
            size: height and width of the image in pixels.
            rate: rate point in units of 1 / 4096.

        Raises:
            ValueError: when they are none of an image of that size at that rate.
            MemoryLimitError: when the image needs more memory than may be used.
        """
        if not 0 <= rate <= (self.model.num_rates - 1) * RATE_ONE or rate % self._unit:
            raise ValueError(f"the model has no rate point {rate / RATE_ONE}")
        header = Header(fingerprint=self.fingerprint, width=size[1], height=size[0], rate=rate)
        latent_size = self._latent_size(header)
        self.latent_codec.check(symbols, latent_size)
        with torch.inference_mode(), self._coding(1, latent_size):
            (payload,) = self.latent_codec.write(symbols, self._rates([header]))
        return bitstream.pack(header, payload)

    def rate_of(self, quality: float) -> int:
        """Return the rate point of a quality from 0 to 100, in units of 1 / 4096.

        Raises:
            ValueError: when the quality is out of range.
        """
        if not 0 <= quality <= 100:
            raise ValueError(f"quality must lie in [0, 100], got {quality}")
        steps = (self.model.num_rates - 1) * RATE_ONE // self._unit
        return round(quality / 100 * steps) * self._unit

    def quality_of(self, rate: int) -> float:
        """Return the quality of a rate point in units of 1 / 4096; 0 where there is only one."""
        return 100 * rate / max(1, (self.model.num_rates - 1) * RATE_ONE)

    @contextmanager
    def _coding(self, count: int, size: Size) -> Iterator[None]:
        with self.networks.coding(self.latent_codec.memory(count, size)), self.stage(ENTROPY_CODING):
            yield

    def _improved(self, optimize: LatentOptimization, x: Tensor, latent: Tensor, rate: int) -> Tensor:
        with self.networks.searching():
            limit = self.networks.limit(self.model)
            return optimize(self.model, self.networks.padded(x), latent, rate / RATE_ONE, limit)

    def _search(self, latent: Tensor, x: Tensor, target: float) -> tuple[int, bytes]:
        """Return the rate point, in units of 1 / 4096, of the largest file below a target, and that file."""
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
                    f"written with other weights: the file names {header.fingerprint.hex()}, "
                    f"this model is {self.fingerprint.hex()}"
                )
            if header.rate > (self.model.num_rates - 1) * RATE_ONE or header.rate % self._unit:
                raise DamagedError(f"damaged: the model has no rate point {header.rate / RATE_ONE}")
            headers.append(header)
            payloads.append(payload)
        if len({self._latent_size(header) for header in headers}) > 1:
            raise ValueError("the images of a batch must have one size once padded to the model's stride")
        return headers, payloads

    def _latent_size(self, header: Header) -> Size:
        height, width = padded_size(header.height, header.width, self.model.stride)
        factor = self.model.decoder.downsampling
        return height // factor, width // factor

    def _rates(self, headers: Sequence[Header]) -> Tensor:
        return torch.tensor([header.rate / RATE_ONE for header in headers], device=self.device)


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device of a name, or for "auto" a GPU where there is one.

    Raises:
        ValueError: when there is no such device here.
    """
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {str(name)!r} here: {str(error).splitlines()[0]}") from error
    return device
