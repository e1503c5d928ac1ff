"""Run E and D on any device, within a memory limit."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glc.codec.runtime.resources import (
    Precision,
    available_memory,
    check_memory,
    give_back_freed,
    resident_memory,
)
from glc.codec.runtime.row_tiles import Source
from glc.codec.runtime.tiled_networks import TiledDecoder, TiledEncoder
from glc.codec.stages import Stages
from glc.codec.weights.mmap import MappedFile, bytes_to_read
from glc.data.images import from_uint8, padded_size, to_uint8
from glc.errors import MemoryLimitError, NotFiniteError
from glc.models.autoencoder import Decoder, Encoder
from glc.models.glc import GLC

Size = tuple[int, int]
"""Height and width in pixels."""

_RESERVE = 0.9
"""Share of the allowed or available memory to plan for: the C library keeps some freed memory."""
_LARGE = 1 << 25
"""Values of an image from which freed memory goes back to the system before D, which takes milliseconds."""


class ImageNetworks:
    """E and D of a codec.

    On a CPU images run one after the other in row tiles (`glc.codec.runtime.tiled_networks`); a user's own
    networks run on the complete image, without a memory limit. Other devices run a whole batch at once, in
    channels-last memory, limited by the device's memory only.

    Args:
        model: the model; a network's weights are read when it is first used.
        precision: number formats of E and D.
        memory: bytes that the process may use; None for the machine's available memory.
        files: mapped files of the model's weights; one network's weights are in memory at a time.
    """

    def __init__(
        self,
        model: GLC,
        device: torch.device,
        precision: Precision,
        memory: int | None = None,
        files: tuple[MappedFile, ...] = (),
        stage: Stages | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self.memory = memory
        self.files = files if device.type == "cpu" else ()  # elsewhere the weights are copies
        self.stage = stage or Stages()

    @cached_property
    def _tiled_encoder(self) -> TiledEncoder | None:
        network = self.model.encoder
        tiled = TiledEncoder(network, self.precision.encoder) if type(network) is Encoder else None
        self.release()  # bfloat16 weights are copies: drop the mapped pages
        return tiled

    @cached_property
    def _tiled_decoder(self) -> TiledDecoder | None:
        network = self.model.decoder
        tiled = TiledDecoder(network, self.precision.decoder) if type(network) is Decoder else None
        self.release()
        return tiled

    @cached_property
    def _full_encoder(self) -> Callable[[Tensor], Tensor]:
        return _full_network(self.model.encoder, self.precision.encoder, first=True)

    @cached_property
    def _full_decoder(self) -> Callable[[Tensor], Tensor]:
        return _full_network(self.model.decoder, self.precision.decoder, first=False)

    def limit(self, network: nn.Module) -> int | None:
        """Return the bytes that maps may use; None for no limit, as on a GPU.

        Args:
            network: the network that will run; its weights need memory as well.
        """
        if self.device.type != "cpu":
            return None
        if self.memory is not None:
            free: int | None = int(_RESERVE * self.memory) - resident_memory()
        else:
            available = available_memory()
            free = None if available is None else int(_RESERVE * available)
        return None if free is None else max(0, free - bytes_to_read(network, self.files))

    @contextmanager
    def coding(self, need: int) -> Iterator[None]:
        """Run the entropy model: check its memory before, release its weights after.

        Args:
            need: bytes of its maps.

        Raises:
            MemoryLimitError: when it needs more memory than may be used.
        """
        limit = self.limit(self.model.coder)
        if limit is not None and need > limit:
            give_back_freed()  # not each time: it is faulted in again
            limit = self.limit(self.model.coder)
        check_memory(need, limit, "the entropy model")
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Release mapped weights and return freed memory to the system."""
        for file in self.files:
            file.release()
        if self.files:
            give_back_freed()

    def encode(self, images: Sequence[Tensor]) -> Tensor:
        """Return the latents `[B, C, h, w]`, float32, on the device.

        Args:
            images: `[1, 3, H, W]` each, uint8 levels or float32 in [-1, 1]; all of one size after padding.

        Raises:
            MemoryLimitError: when an image needs more memory than may be used.
        """
        with self.stage("E"):
            if self.device.type != "cpu":
                with _enough_memory(self.device):
                    return self._encode_full(images)
            try:
                return torch.cat([self._encode_on_cpu(image) for image in images])
            finally:
                self.release()

    def _encode_full(self, images: Sequence[Tensor]) -> Tensor:
        # Transfer uint8 levels as such: a quarter of the bytes of floats.
        moved = [self.padded(image) for image in images]
        x = torch.cat(moved).contiguous(memory_format=torch.channels_last)
        return self._full_encoder(x).float().contiguous()

    def _encode_on_cpu(self, image: Tensor) -> Tensor:
        encoder, stride, limit = self.model.encoder, self.model.stride, self.limit(self.model.encoder)
        height, width = padded_size(image.shape[2], image.shape[3], stride)
        if self._tiled_encoder is not None:
            source = Source(height, lambda start, stop: _padded(image, start, stop, stride))
            return self._tiled_encoder(source, width, limit)
        with _full_on_cpu(encoder, "encoder", 12 * height * width, limit):
            return self._encode_full([image])

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Run latent optimisation: report a GPU's lack of memory, release weights after.

        Raises:
            MemoryLimitError: when the GPU runs out of memory.
        """
        try:
            with _enough_memory(self.device):
                yield
        finally:
            self.release()

    def padded(self, image: Tensor) -> Tensor:
        """Return the input of E: float32 `[1, 3, H, W]` in [-1, 1] on the device, padded."""
        return _padded(image.to(self.device), 0, None, self.model.stride)

    def decode(self, latent_hat: Tensor, sizes: Sequence[Size]) -> list[np.ndarray]:
        """Decode latents l_hat `[B, C, h, w]` to images, uint8 `[H, W, 3]`.

        Args:
            latent_hat: float32.
            sizes: heights and widths of the images, padding excluded.

        Raises:
            NotFiniteError: when a pixel is not finite.
            MemoryLimitError: when an image needs more memory than may be used, or than a GPU has.
        """
        if self.model.refiner is not None:
            with self.stage("refiner"):
                latent_hat = self.model.refiner(latent_hat)
        canvases = [_Canvas(size) for size in sizes]
        with self.stage("D"):
            if self.device.type != "cpu":
                with _enough_memory(self.device):
                    x_hat = self._decode_full(latent_hat)
                for image, canvas in zip(x_hat.split(1), canvases, strict=True):
                    canvas.write(0, 0, image)
            else:
                try:
                    for latent, canvas in zip(latent_hat.split(1), canvases, strict=True):
                        self._decode_on_cpu(latent, canvas)
                finally:
                    self.release()
        return [canvas.pixels for canvas in canvases]

    def _decode_full(self, latent_hat: Tensor) -> Tensor:
        return self._full_decoder(latent_hat.contiguous(memory_format=torch.channels_last))

    def _decode_on_cpu(self, latent: Tensor, canvas: "_Canvas") -> None:
        decoder = self.model.decoder
        if canvas.pixels.size > _LARGE:
            give_back_freed()
        limit = self.limit(decoder)
        if limit is not None:
            limit = max(0, limit - canvas.pixels.nbytes)  # allocated page by page while it is written
        if self._tiled_decoder is not None:
            return self._tiled_decoder(latent, canvas.write, limit, self.release)
        pixels = latent.shape[2] * latent.shape[3] * decoder.downsampling**2
        with _full_on_cpu(decoder, "decoder", 12 * pixels, limit):
            canvas.write(0, 0, self._decode_full(latent))


class _Canvas:
    """An image that is written in parts."""

    def __init__(self, size: Size) -> None:
        self.pixels = np.empty((*size, 3), np.uint8)

    def write(self, row: int, column: int, part: Tensor) -> None:
        height, width = self.pixels.shape[:2]
        part = part[0, :, : max(0, height - row), : max(0, width - column)]
        if not part.isfinite().all():
            raise NotFiniteError("pixels are not finite")
        to = self.pixels[row : row + part.shape[1], column : column + part.shape[2]]
        to[:] = to_uint8(part).permute(1, 2, 0).cpu().numpy()


def _padded(image: Tensor, start: int, stop: int | None, stride: int) -> Tensor:
    """Return rows of an image in [-1, 1], padded to multiples of the stride by edge replication."""
    height, width = image.shape[2:]
    rows, columns = padded_size(height, width, stride)
    inside = image[:, :, min(start, height - 1) : stop]
    inside = from_uint8(inside) if inside.dtype == torch.uint8 else inside
    below = (rows if stop is None else stop) - start - inside.shape[2]
    if below or columns > width:
        return nn.functional.pad(inside, (0, columns - width, 0, below), mode="replicate")
    return inside


@contextmanager
def _enough_memory(device: torch.device) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(
            f"{device}: out of memory for an image or batch of this size; use smaller batches, or "
            "--device cpu (device= in Python), which runs in row tiles"
        ) from error


@contextmanager
def _full_on_cpu(network: nn.Module, role: str, pixels: int, limit: int | None) -> Iterator[None]:
    """Run a user's own network: check at least the image's memory before, report a failed allocation."""
    name = f"{type(network).__module__}.{type(network).__qualname__}"
    why = "it runs on the complete image; only networks of glc run in row tiles within a limit"
    if limit is not None and pixels > limit:
        raise MemoryLimitError(
            f"the {role} {name} needs more than {pixels / 1e9:.1f} GB for an image of this size, and "
            f"{limit / 1e9:.1f} GB may be used ({why}); raise --memory (memory= in Python)"
        )
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise MemoryLimitError(
                f"out of memory in the {role} {name} ({why}); compress smaller images"
            ) from error
        raise


def _full_network(network: nn.Module, dtype: torch.dtype, first: bool) -> Callable[[Tensor], Tensor]:
    """Return a function that runs a network on complete images, in channels-last memory, to float32.

    In networks of glc the convolution from or to pixels stays in float32, as in row tiles: bfloat16 cannot
    hold 8 bits. A user's own network runs under autocast.

    Args:
        dtype: of all other layers.
        first: whether pixels are the input (E) rather than the output (D).
    """
    if type(network) not in (Encoder, Decoder):

        def run(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
                out: Tensor = network(x)
            return out.float()

        return run
    converted: Any = copy.deepcopy(network).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    convolutions = [block for block in converted.blocks if isinstance(block, nn.Conv2d)]
    if first:
        convolutions[0].float().register_forward_hook(lambda _, given, out: out.to(dtype))
        return converted
    convolutions[-1].float().register_forward_pre_hook(lambda _, given: (given[0].float(),))
    converted.register_forward_pre_hook(lambda _, given: (given[0].to(dtype),))
    return converted
