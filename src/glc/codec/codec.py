"""The codec with PyTorch; `load` makes one from the names or files of its networks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glc.codec.base import BaseCodec, LatentOptimization, Size
from glc.codec.bitstream import RATE_ONE
from glc.codec.entropy.latent_coding import make_latent_codec
from glc.codec.runtime.defaults import standard_defaults
from glc.codec.runtime.networks import ImageNetworks
from glc.codec.runtime.resources import choose_precision, parse_memory
from glc.codec.stages import ENTROPY_CODING
from glc.codec.weights.catalog import DEFAULT_MODEL, find
from glc.codec.weights.export import read_codec
from glc.codec.weights.file import Weights, read_weights
from glc.codec.weights.labels import Kind
from glc.codec.weights.trust import Trust
from glc.codec.weights.variants import attach, read_variant
from glc.data.images import ImageLike, to_input
from glc.errors import InexactError, WeightsError
from glc.models.coder import IndicesMapCoder
from glc.models.glc import GLC


class Codec(BaseCodec):
    """The codec with PyTorch, on CPUs and GPUs; see `glc.codec.base.BaseCodec` for its methods.

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

    backend = "torch"

    @standard_defaults()
    def __init__(
        self,
        weights: Weights,
        device: str | torch.device = "cpu",
        precision: str = "auto",
        memory: int | str | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model: GLC = weights.model.to(self.device).eval().requires_grad_(False)
        self.weights = weights
        super().__init__(
            source=weights.source,
            fingerprint=weights.fingerprint,
            num_rates=self.model.num_rates,
            downsampling=(self.model.encoder.downsampling, self.model.decoder.downsampling),
            stride=self.model.stride,
            fractional=not isinstance(self.model.coder, IndicesMapCoder),
        )
        limit = parse_memory(memory) if isinstance(memory, str) else memory
        precisions = choose_precision(precision, self.device)
        self.networks = ImageNetworks(self.model, self.device, precisions, limit, weights.files, self.stage)
        """E and D, in their precision and tiled to the memory limit."""
        try:
            self.latent_codec = make_latent_codec(self.model.coder, weights.tables, self.device, self.stage)
        except (InexactError, ValueError) as error:
            raise WeightsError(f"{weights.source}: cannot encode files: {error}") from error
        self.networks.release()

    @standard_defaults()
    def _to_input(self, image: ImageLike) -> Tensor:
        return to_input(image)

    @standard_defaults()
    @torch.inference_mode()
    def _encode(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.networks.encode(inputs)

    @standard_defaults()
    @torch.inference_mode()
    def _decode(self, latent_hat: Tensor, sizes: Sequence[Size]) -> list[np.ndarray]:
        return self.networks.decode(latent_hat, sizes)

    @standard_defaults()
    def _rates(self, rate_indexes: Sequence[int]) -> Tensor:
        return torch.tensor([rate_index / RATE_ONE for rate_index in rate_indexes], device=self.device)

    @contextmanager
    def _coding(self, count: int, size: Size) -> Iterator[None]:
        with (
            standard_defaults(),
            torch.inference_mode(),
            self.networks.coding(self.latent_codec.memory(count, size)),
            self.stage(ENTROPY_CODING),
        ):
            yield

    @standard_defaults()
    @torch.inference_mode()
    def _improved(self, optimize: LatentOptimization, x: Tensor, latent: Tensor, rate_index: int) -> Tensor:
        with self.networks.searching():
            limit = self.networks.limit(self.model)
            return optimize(self.model, self.networks.padded(x), latent, rate_index / RATE_ONE, limit)


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
    """Return a codec with PyTorch; see `glc.codec.load.load`."""
    trained = Path(model).suffix == ".ckpt" or (Path(model) / "checkpoints").is_dir()
    file = Path(model) if trained else find(model)
    return Codec(assemble(file, encoder, decoder, trust), choose_device(device), precision, memory)


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
