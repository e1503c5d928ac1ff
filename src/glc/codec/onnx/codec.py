"""The codec without PyTorch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from glc.codec import bitstream
from glc.codec.base import BaseCodec, LatentOptimization, Size
from glc.codec.bitstream import DEFAULT_LIMIT, RATE_ONE
from glc.codec.onnx import networks
from glc.codec.onnx.latent_coding import ArrayIndicesMapCodec, ArrayTransformCodec
from glc.codec.onnx.runtime import Sessions, make_graphs
from glc.codec.onnx.weights import TORCH_HINT, ArrayWeights, read_arrays
from glc.codec.runtime.resources import PRECISIONS, available_memory, parse_memory, resident_memory
from glc.codec.stages import ENTROPY_CODING
from glc.codec.weights.catalog import DEFAULT_MODEL, find
from glc.data.images import ImageLike, padded_size, to_array, to_input
from glc.errors import BackendError, InexactError, MemoryLimitError, NotFiniteError, WeightsError

_MAPS = 6
"""Largest maps that exist at a time while E or D runs, measured; see docs/performance.md."""
_ATTENTION_BYTES = 16
"""Memory of attention per position and position of its window."""


class OnnxCodec(BaseCodec):
    """The codec on ONNX Runtime and NumPy, on a CPU, in float32; see `BaseCodec` for its methods.

    An image is computed as a whole: `memory_needed` bounds its memory. Integers of symbols are arrays.

    Args:
        weights: from `glc.codec.onnx.weights.read_arrays`.
        precision: "auto" or "float32".
        memory: memory limit in bytes or as text such as "8GB"; None for the available memory.

    Raises:
        WeightsError: the weights do not describe a codec.
        ValueError: an unknown precision, or an invalid memory limit.
    """

    backend = "onnx"
    device = "cpu"

    def __init__(
        self, weights: ArrayWeights, precision: str = "auto", memory: int | str | None = None
    ) -> None:
        if precision not in PRECISIONS[:2]:
            raise ValueError(f"precision {precision}: the backend onnx computes in float32; {TORCH_HINT}")
        self.weights = weights
        self._memory = parse_memory(memory) if isinstance(memory, str) else memory
        self._sessions = Sessions(make_graphs(weights), weights.source)
        factors = tuple(networks.downsampling(weights.description[key]) for key in ("encoder", "decoder"))
        maps_indices = "sizes" in weights.description["coder"]
        stride = factors[0] * (1 if maps_indices else ArrayTransformCodec.stride)
        super().__init__(
            source=weights.source,
            fingerprint=weights.fingerprint,
            num_rates=len(weights.rates),
            downsampling=(factors[0], factors[1]),
            stride=stride,
            fractional=not maps_indices,
        )
        try:
            self.latent_codec = (
                ArrayIndicesMapCodec(weights, self.stage)
                if maps_indices
                else ArrayTransformCodec(weights, self._sessions, self.stage)
            )
        except KeyError as error:
            raise WeightsError(
                f"{weights.source}: the weights do not fit their description: {error} is missing"
            ) from error
        except (InexactError, ValueError) as error:
            raise WeightsError(f"{weights.source}: cannot encode files: {error}") from error
        if self.latent_codec.num_rates != self.num_rates:
            raise WeightsError(
                f"{weights.source}: the metadata key 'rates' must describe "
                f"{self.latent_codec.num_rates} rate points"
            )

    @property
    def model(self) -> Any:
        """Raise an error: there are no networks of PyTorch.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(
            "the backend onnx has no PyTorch model; glc.load(..., backend='torch') has one "
            "(pip install 'glc-codec[torch]')"
        )

    def decompress_batch(
        self, files: Sequence[bytes], *, max_pixels: int = DEFAULT_LIMIT
    ) -> list[Image.Image]:
        """Return the images in files; D's session is made while the integers are decoded."""
        if files:
            header, _ = bitstream.unpack(files[0], max_pixels)
            self._sessions.prepare("decoder", header.height * header.width)
        return super().decompress_batch(files, max_pixels=max_pixels)

    def memory_needed(self, pixels: int) -> int:
        """Return the bytes that E or D needs for an image, padding included; an estimate from above."""
        return max(_bytes_per_pixel(self.weights.description[key]) for key in ("encoder", "decoder")) * pixels

    def _to_input(self, image: ImageLike) -> np.ndarray:
        if hasattr(image, "detach"):  # a tensor of PyTorch
            return to_input(image).cpu().numpy()
        return to_array(image)

    def _encode(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([self._encode_one(x) for x in inputs])

    def _encode_one(self, x: np.ndarray) -> np.ndarray:
        height, width = x.shape[2:]
        rows, columns = padded_size(height, width, self.stride)
        self._check_memory(rows * columns)
        if x.dtype == np.uint8:
            x = x.astype(np.float32)
            x /= np.float32(127.5)
            x -= np.float32(1)
        x = np.pad(x, ((0, 0), (0, 0), (0, rows - height), (0, columns - width)), mode="edge")
        with self.stage("E"), _memory_errors():
            (latent,) = self._sessions.run("encoder", height * width, x=x)
        return latent

    def _decode(self, latent_hat: np.ndarray, sizes: Sequence[Size]) -> list[np.ndarray]:
        return [self._decode_one(latent_hat[i : i + 1], size) for i, size in enumerate(sizes)]

    def _decode_one(self, latent_hat: np.ndarray, size: Size) -> np.ndarray:
        self._check_memory(latent_hat.shape[2] * latent_hat.shape[3] * self._downsampling**2)
        with self.stage("D"), _memory_errors():
            (x_hat,) = self._sessions.run("decoder", size[0] * size[1], l_hat=latent_hat)
        x = x_hat[0, :, : size[0], : size[1]]
        if not np.isfinite(x).all():
            raise NotFiniteError("pixels are not finite")
        levels = x + np.float32(1)
        levels *= np.float32(127.5)
        np.rint(levels, out=levels)
        return np.ascontiguousarray(levels.clip(0, 255, out=levels).astype(np.uint8).transpose(1, 2, 0))

    def _rates(self, rate_indexes: Sequence[int]) -> np.ndarray:
        return np.array(rate_indexes, np.float32) / np.float32(RATE_ONE)

    @contextmanager
    def _coding(self, count: int, size: Size) -> Iterator[None]:
        self._check(self.latent_codec.memory(count, size))
        with self.stage(ENTROPY_CODING):
            yield

    def _improved(self, optimize: LatentOptimization, x: Any, latent: Any, rate_index: int) -> Any:
        raise ValueError(f"latent optimisation needs PyTorch; {TORCH_HINT}")

    def _check_memory(self, pixels: int) -> None:
        self._check(self.memory_needed(pixels))

    def _check(self, need: int) -> None:
        own = self._memory
        limit = available_memory() if own is None else max(0, own - resident_memory())
        if limit is not None and need > 0.9 * limit:
            raise MemoryLimitError(
                f"the backend onnx needs {need / 1e9:.1f} GB for an image of this size, and "
                f"{limit / 1e9:.1f} GB may be used; {TORCH_HINT}, which needs a fraction of that"
            )


def load_onnx(
    model: str | Path = DEFAULT_MODEL,
    *,
    encoder: str | Path | None = None,
    decoder: str | Path | None = None,
    precision: str = "auto",
    memory: int | str | None = None,
) -> OnnxCodec:
    """Return a codec without PyTorch; see `glc.codec.load.load`."""
    variants = {
        kind: None if name is None else find(name, kind)
        for kind, name in (("encoder", encoder), ("decoder", decoder))
    }
    trained = Path(model).suffix == ".ckpt" or (Path(model) / "checkpoints").is_dir()
    path = Path(model) if trained else find(model)
    if trained:
        raise BackendError(f"{path}: a checkpoint; export it with `glc export`, or {TORCH_HINT}")
    return OnnxCodec(read_arrays(path, **variants), precision, memory)


def _bytes_per_pixel(description: networks.Description) -> int:
    """Return the memory of E or D per pixel: some of its largest maps, and its attention."""
    stem, channels = description.get("stem", 1), description.get("channels", 128)
    multipliers = description.get("multipliers", (1, 1, 2, 2, 4))
    # The largest map of a level has the width of this level or of the next lower one.
    widths = [max(multipliers[k : k + 2]) * channels for k in range(len(multipliers))]
    maps = [width / (stem << level) ** 2 for level, width in enumerate(widths)]
    if description.get("fine_blocks"):
        maps.append(description.get("fine_channels", 48) / 4)
    window = description.get("window", 32) or 64
    attention = _ATTENTION_BYTES * window**2 / networks.downsampling(description) ** 2
    return round(4 * _MAPS * max(maps) + attention + 48)


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise MemoryLimitError(
            f"out of memory in the backend onnx; {TORCH_HINT}, which needs a fraction of that"
        ) from error
