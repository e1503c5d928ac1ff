"""Pictures to latents and back, as the codec does it: E and D on any device, within a limit of memory."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from glc.codec.images import padded_size
from glc.codec.runtime.memory import available_memory, check_memory, give_back_freed, resident_memory
from glc.codec.runtime.precision import Precision
from glc.codec.runtime.row_tiles import Source
from glc.codec.runtime.tiled_networks import BandedDecoder, BandedEncoder
from glc.codec.weights.mmap import MappedFile, bytes_to_read
from glc.data.images import from_uint8, to_uint8
from glc.errors import MemoryLimitError, NotFiniteError
from glc.models.autoencoder import Decoder, Encoder
from glc.models.glc import GLC

Size = tuple[int, int]
"""Height and width in pixels."""

_RESERVE = 0.9
"""Part of the memory that may be taken, or is free on the machine, which is planned for: the C library keeps
some of what was freed."""


class PictureNetworks:
    """E and D of a codec.

    On a CPU pictures are computed one after the other in bands of rows, see
    `glc.codec.runtime.tiled_networks`. Other devices compute a whole batch at once, in channels-last memory,
    and know no limit but their own.

    Args:
        model: whose weights to use, as they are when a network is first needed.
        device: where.
        precision: number formats of the two.
        memory: bytes that the process may take; None for what is free on the machine.
        files: whose memory the model's weights share: no more of it is held than one network's at a time.
    """

    def __init__(
        self,
        model: GLC,
        device: torch.device,
        precision: Precision,
        memory: int | None = None,
        files: tuple[MappedFile, ...] = (),
    ) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self.memory = memory
        self.files = files if device.type == "cpu" else ()  # elsewhere the weights are copies

    @cached_property
    def _banded_encoder(self) -> BandedEncoder:
        made = BandedEncoder(self.model.encoder, self.precision.encoder)
        self.release()  # half of a network in bfloat16 is a copy
        return made

    @cached_property
    def _banded_decoder(self) -> BandedDecoder:
        made = BandedDecoder(self.model.decoder, self.precision.decoder)
        self.release()
        return made

    @cached_property
    def _whole_encoder(self) -> nn.Module:
        return _cast(self.model.encoder, self.precision.encoder, first=True)

    @cached_property
    def _whole_decoder(self) -> nn.Module:
        return _cast(self.model.decoder, self.precision.decoder, first=False)

    def limit(self, network: nn.Module) -> int | None:
        """Return the bytes that may still be taken; None where nothing says, as on a GPU.

        Args:
            network: what will run: its weights will be in memory besides.
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
        """Surround what the entropy model computes: checked beforehand, its weights given back after it.

        Args:
            need: bytes that it takes.

        Raises:
            MemoryLimitError: when it needs more memory than may be used.
        """
        check_memory(need, self.limit(self.model.coder), "the entropy model")
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Give back the memory of weights that lie in files, and what was freed."""
        for file in self.files:
            file.release()
        if self.files:
            give_back_freed()

    def encode(self, pictures: Sequence[Tensor]) -> Tensor:
        """Return the latents `[B, C, h, w]`, float32, on the device.

        Args:
            pictures: `[1, 3, H, W]` each, uint8 levels or float32 in [-1, 1]; all of one size once padded.

        Raises:
            MemoryLimitError: when a picture needs more memory than may be used.
        """
        if self.device.type == "cpu":
            try:
                return torch.cat([self._encode_banded(picture) for picture in pictures])
            finally:
                self.release()
        with _enough_memory(self.device):
            return self._encode_whole(pictures)

    def _encode_whole(self, pictures: Sequence[Tensor]) -> Tensor:
        # As they came: levels are a quarter of the bytes of floats.
        moved = [self.padded(picture) for picture in pictures]
        x = torch.cat(moved).contiguous(memory_format=torch.channels_last)
        return self._whole_encoder(x).float().contiguous()

    def _encode_banded(self, picture: Tensor) -> Tensor:
        stride = self.model.stride
        height, width = padded_size(picture.shape[2], picture.shape[3], stride)
        source = Source(height, lambda start, stop: _padded(picture, start, stop, stride))
        return self._banded_encoder(source, width, self.limit(self.model.encoder))

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Surround a search of latents: lack of a GPU's memory is named, weights are given back after it.

        Raises:
            MemoryLimitError: when the GPU's memory does not suffice.
        """
        try:
            with _enough_memory(self.device):
                yield
        finally:
            self.release()

    def padded(self, picture: Tensor) -> Tensor:
        """Return a picture as E sees it: float32 `[1, 3, H, W]` in [-1, 1] on the device, padded."""
        return _padded(picture.to(self.device), 0, None, self.model.stride)

    def draw(self, latent_hat: Tensor, sizes: Sequence[Size]) -> list[np.ndarray]:
        """Return the pictures, uint8 `[H, W, 3]`, of latents l_hat `[B, C, h, w]`.

        Args:
            latent_hat: float32.
            sizes: of the pictures, padding excluded.

        Raises:
            NotFiniteError: when a pixel is not finite.
            MemoryLimitError: when a picture needs more memory than may be used, or than a GPU has.
        """
        if self.model.refiner is not None:
            latent_hat = self.model.refiner(latent_hat)
        canvases = [_Canvas(size) for size in sizes]
        if self.device.type == "cpu":
            try:
                for latent, canvas in zip(latent_hat.split(1), canvases, strict=True):
                    limit = self.limit(self.model.decoder)
                    if limit is not None:
                        limit = max(0, limit - canvas.pixels.nbytes)  # memory that is taken as it is written
                    self._banded_decoder(latent, canvas.write, limit, self.release)
            finally:
                self.release()
        else:
            with _enough_memory(self.device):
                x_hat = self._draw_whole(latent_hat)
            for picture, canvas in zip(x_hat.split(1), canvases, strict=True):
                canvas.write(0, picture)
        return [canvas.pixels for canvas in canvases]

    def _draw_whole(self, latent_hat: Tensor) -> Tensor:
        x = latent_hat.to(self.precision.decoder, memory_format=torch.channels_last)
        x_hat: Tensor = self._whole_decoder(x)
        return x_hat


class _Canvas:
    """A picture that is written by rows."""

    def __init__(self, size: Size) -> None:
        self.pixels = np.empty((*size, 3), np.uint8)

    def write(self, row: int, rows: Tensor) -> None:
        height, width = self.pixels.shape[:2]
        rows = rows[0, :, : max(0, height - row), :width]
        if not rows.isfinite().all():
            raise NotFiniteError("pixels are not finite")
        self.pixels[row : row + rows.shape[1]] = to_uint8(rows).permute(1, 2, 0).cpu().numpy()


def _padded(picture: Tensor, start: int, stop: int | None, stride: int) -> Tensor:
    """Return rows of a picture, padded to multiples of the stride by its last pixels, in [-1, 1]."""
    height, width = picture.shape[2:]
    rows, columns = padded_size(height, width, stride)
    inside = picture[:, :, min(start, height - 1) : stop]
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
            f"the memory of {device} does not suffice for a picture or batch of this size: give --device cpu "
            "(device= in Python), which computes it in bands, or fewer pictures at a time"
        ) from error


def _cast(network: Encoder | Decoder, dtype: torch.dtype, first: bool) -> nn.Module:
    """Return a copy for whole pictures.

    Its convolution from or to pixels stays in float32, as in bands: 8 bits are more than bfloat16 holds.

    Args:
        network: E or D.
        dtype: of all else.
        first: whether its pixels are what comes in.
    """
    made = copy.deepcopy(network).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    convolutions = [block for block in made.blocks if isinstance(block, nn.Conv2d)]
    if first:
        convolutions[0].float().register_forward_hook(lambda _, given, out: out.to(dtype))
    else:
        convolutions[-1].float().register_forward_pre_hook(lambda _, given: (given[0].float(),))
    return made
