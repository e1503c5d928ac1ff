"""Latent codecs without PyTorch; see `glc.codec.entropy.latent_coding`, which has the same methods."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from glc.codec.entropy.ans import AnsDecoder, AnsEncoder, UniformModel
from glc.codec.entropy.region import FIXED_LENGTH, Region
from glc.codec.entropy.symbols import Decoded, SymbolCoder, Symbols, check_integers
from glc.codec.entropy.tables import ACTIVATION_BITS, SYMBOL_LIMIT
from glc.codec.onnx.integer_nets import IntegerNetworks, depth_of
from glc.codec.onnx.runtime import Sessions, threads
from glc.codec.onnx.weights import ArrayWeights
from glc.codec.stages import CODEBOOK_SEARCH, INTEGER_NETWORKS, Stages
from glc.codec.uncertainty import NO_CELLS, cell_offsets
from glc.errors import InexactError
from glc.models.quadtree import ContextStep, gate, quadtree_masks, walk

Size = tuple[int, int]
_BYTES_PER_ELEMENT = 96
"""Memory per element of y, as with PyTorch."""
_STRIDE = 4
"""Positions of y per position of z along a side."""
_CHUNK = 1 << 24
"""Distances of a codebook search that are computed at a time."""


class ArrayTransformCodec:
    """Codes the latent of a `TransformCoder`.

    Raises:
        InexactError: a network cannot be computed in integers.
        ValueError: the tables do not fit.
    """

    stride = _STRIDE

    def __init__(self, weights: ArrayWeights, sessions: Sessions, stage: Stages) -> None:
        coder = weights.description["coder"]
        self.channels: int = coder["context"]["channels"]
        self.num_rates: int = coder.get("num_rates", 4)
        self._sessions, self._stage = sessions, stage
        self._networks = IntegerNetworks(weights.tensors, depth_of(coder), threads())
        self._thresholds = np.array(weights.tables.thresholds, np.float64) / (1 << ACTIVATION_BITS)
        self._gated = coder.get("gate") is not None
        size = coder["hyper"].get("codebook_size")
        self._codebook: np.ndarray | None = None
        if size is not None:
            self._codebook = weights.tensors["coder.hyper.quantizer.embedding"]
            if not np.isfinite(self._codebook).all():
                raise InexactError("the codebook of z must be stored as finite codewords")
        z_channels = self.channels if size is None else None
        self._y_tables = weights.tables.y
        self._coding = SymbolCoder(
            weights.tables, self.channels, _STRIDE, z_channels, size or 0, self.num_rates
        )

    def memory(self, batch: int, size: Size) -> int:
        """Return the bytes of the maps for a batch of latents of h x w."""
        return _BYTES_PER_ELEMENT * batch * self.channels * size[0] * size[1]

    def encode(
        self, latent: np.ndarray, rate_index: np.ndarray, weights: np.ndarray | None = None
    ) -> tuple[list[bytes], Symbols]:
        """Return the payloads and the symbols of latents l `[B, C, h, w]` at rate indexes `[B]`.

        Args:
            weights: of a region of interest, see `glc.codec.entropy.region`.
        """
        with self._stage("g_a"):
            y, z = self._sessions.run("analysis", l=latent, rate=rate_index)
        if not np.isfinite(y).all():
            raise ValueError("the transform of the image is not finite; check the weights")
        z = z.clip(-SYMBOL_LIMIT, SYMBOL_LIMIT) if self._codebook is None else z

        region = None if weights is None else Region(weights, self._y_tables)

        def choose(step: ContextStep) -> np.ndarray:
            residual = y.astype(np.float64) / step.quant_step - step.means
            residual = residual if step.rho is None else residual / step.rho
            if region is not None:
                return region.choose(residual, step.scales)
            return np.rint(residual).clip(-SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.int32)

        return self._write(z, choose, rate_index)

    def check(self, symbols: Symbols, size: Size) -> None:
        """Check that symbols are valid for one latent of h x w."""
        self._coding.check(symbols, size)

    def write(self, symbols: Symbols, rate_index: np.ndarray) -> list[bytes]:
        """Return the payloads of given symbols; the same bytes on every machine."""
        y = np.asarray(symbols.y)
        return self._write(np.asarray(symbols.z), lambda step: y, rate_index)[0]

    def _write(
        self, z: np.ndarray, choose: Callable[[ContextStep], np.ndarray], rate_index: np.ndarray
    ) -> tuple[list[bytes], Symbols]:
        symbols: np.ndarray = np.zeros((), np.int32)
        indexes = symbols
        for step in self._walk(z, rate_index):
            step.symbols = choose(step)
            symbols = np.where(step.mask, step.symbols, symbols)
            indexes = np.where(step.mask, step.scales, indexes)
        height, width = symbols.shape[-2:]
        masks = quadtree_masks(np, self.channels, height, width)[:, 0]
        payloads = self._coding.write(z, symbols, indexes, masks, rate_index.tolist())
        return payloads, Symbols(z, symbols.astype(np.int32))

    def decode(self, payloads: Sequence[bytes], size: Size, rate_index: np.ndarray) -> Decoded:
        """Decode payloads of latents of h x w at rate indexes `[B]`.

        Raises:
            CorruptFileError: a payload is corrupt.
        """
        symbols, step = self._decode(payloads, size, rate_index)
        return Decoded(symbols, self._synthesis(step.y_hat, rate_index))

    def decode_cell(
        self, payloads: Sequence[bytes], size: Size, rate_index: np.ndarray, draws: int
    ) -> Iterator[np.ndarray]:
        """Yield l_hat of payloads, then that of other points in the quantisation cells of y."""
        _, step = self._decode(payloads, size, rate_index)
        yield self._synthesis(step.y_hat, rate_index)
        cell = step.quant_step if step.rho is None else step.quant_step * step.rho
        for draw in range(1, draws + 1):
            yield self._synthesis(step.y_hat + cell_offsets(step.y_hat.shape, draw) * cell, rate_index)

    def _decode(
        self, payloads: Sequence[bytes], size: Size, rate_index: np.ndarray
    ) -> tuple[Symbols, ContextStep]:
        """Return the symbols of payloads, and the last step of the context model."""
        stacks = [AnsDecoder(payload) for payload in payloads]
        z = self._coding.pop_z(stacks, size, rate_index.tolist())
        symbols = np.zeros((len(stacks), self.channels, *size), np.int32)
        for step in self._walk(z, rate_index):
            step.symbols = self._coding.pop_y(stacks, step.mask[0], step.scales)
            symbols += step.symbols
        for stack in stacks:
            stack.finish()
        return Symbols(z, symbols), step

    def decode_z(self, payloads: Sequence[bytes], size: Size, rate_index: np.ndarray) -> np.ndarray:
        """Return the l_hat `[B, C, h, w]` that the hyper-latents z alone predict (paper figure 5)."""
        stacks = [AnsDecoder(payload) for payload in payloads]
        z = self._coding.pop_z(stacks, size, rate_index.tolist())
        for step in self._walk(z, rate_index):
            step.symbols = np.zeros(step.means.shape, np.int32)
        return self._synthesis(step.y_hat, rate_index)

    def _synthesis(self, y_hat: np.ndarray, rate_index: np.ndarray) -> np.ndarray:
        with self._stage("g_s"):
            (l_hat,) = self._sessions.run("synthesis", y_hat=y_hat.astype(np.float32), rate=rate_index)
        return l_hat

    def _walk(self, z: np.ndarray, rate_index: np.ndarray) -> Iterator[ContextStep]:
        """Walk the context model; the scales of a step become table indexes, int32."""

        def indexes(scales: np.ndarray) -> np.ndarray:
            return np.searchsorted(self._thresholds, scales, side="right").astype(np.int32)

        with self._stage(INTEGER_NETWORKS):
            z_hat = z if self._codebook is None else self._codebook[z].transpose(0, 3, 1, 2)
            quant_step, scales, means, reduced = self._networks.split(self._networks.prior(z_hat))
            rho = self._networks.gate(z_hat, rate_index, self.num_rates) if self._gated else np.ones(1)

        def predict(k: int, y_hat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            with self._stage(INTEGER_NETWORKS):
                return self._networks.predict(k, y_hat, reduced)

        masks = quadtree_masks(np, self.channels, *means.shape[-2:])
        return gate(walk(np, (quant_step, scales, means), masks, predict), rho, indexes)


class ArrayIndicesMapCodec:
    """Codes the indices of an `IndicesMapCoder`."""

    stride = 1

    def __init__(self, weights: ArrayWeights, stage: Stages) -> None:
        self._sizes: list[int] = list(weights.description["coder"]["sizes"])
        self.num_rates = len(self._sizes)
        self._stage = stage
        names = [f"coder.codebooks.{k}.embedding" for k in range(self.num_rates)]
        self._codebooks = [weights.tensors[name].astype(np.float32) for name in names]
        self._models = [UniformModel(size) for size in self._sizes]

    def memory(self, batch: int, size: Size) -> int:
        """Return the bytes of the indices for a batch of latents of h x w."""
        return 8 * batch * size[0] * size[1]

    def encode(
        self, latent: np.ndarray, rate_index: np.ndarray, weights: np.ndarray | None = None
    ) -> tuple[list[bytes], Symbols]:
        """Return the payloads and the symbols of latents l `[B, C, h, w]` at integer rate indexes `[B]`.

        Raises:
            ValueError: weights are given.
        """
        if weights is not None:
            raise ValueError(FIXED_LENGTH)
        with self._stage(CODEBOOK_SEARCH):
            indices = [
                _nearest(vectors, self._codebooks[int(k)])
                for vectors, k in zip(latent, rate_index, strict=True)
            ]
        symbols = Symbols(np.zeros((len(latent), 0), np.int64), np.stack(indices).astype(np.int32))
        return self.write(symbols, rate_index), symbols

    def check(self, symbols: Symbols, size: Size) -> None:
        """Check that symbols are valid for one latent of h x w."""
        check_integers("y", symbols.y, (1, *size), 0, max(self._sizes) - 1)

    def write(self, symbols: Symbols, rate_index: np.ndarray) -> list[bytes]:
        """Return the payloads of given symbols at integer rate indexes `[B]`.

        Raises:
            ValueError: an index is out of range for its rate index.
        """
        payloads = []
        for k, values in zip(rate_index, np.asarray(symbols.y), strict=True):
            size = self._sizes[int(k)]
            if values.size and int(values.max()) >= size:
                raise ValueError(f"y must lie in [0, {size - 1}] at rate point {int(k)}")
            stack = AnsEncoder()
            self._models[int(k)].push(stack, values.ravel())
            payloads.append(stack.payload())
        return payloads

    def decode(self, payloads: Sequence[bytes], size: Size, rate_index: np.ndarray) -> Decoded:
        """Decode payloads; see `ArrayTransformCodec.decode`."""
        indices, latents = [], []
        for payload, k in zip(payloads, rate_index, strict=True):
            stack = AnsDecoder(payload)
            indices.append(self._models[int(k)].pop(stack, size[0] * size[1]).reshape(size))
            stack.finish()
            latents.append(self._codebooks[int(k)][indices[-1]].transpose(2, 0, 1))
        symbols = Symbols(np.zeros((len(payloads), 0), np.int64), np.stack(indices))
        return Decoded(symbols, np.stack(latents))

    def decode_cell(
        self, payloads: Sequence[bytes], size: Size, rate_index: np.ndarray, draws: int
    ) -> Iterator[np.ndarray]:
        """Raise an error: there are no quantisation cells.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_CELLS)

    def decode_z(self, payloads: Sequence[bytes], size: Size, rate_index: np.ndarray) -> Any:
        """Raise an error: there is no hyper-latent.

        Raises:
            ValueError: always.
        """
        raise ValueError("an indices-map codec has no hyper-latent; decode the image instead")


def _nearest(latent: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Return the index of the nearest codeword at each position of a latent `[C, h, w]`."""
    vectors, norms = latent.reshape(len(latent), -1).T, np.square(codebook).sum(1)
    rows = max(1, _CHUNK // len(codebook))
    found = [
        (norms - 2 * (vectors[start : start + rows] @ codebook.T)).argmin(1)
        for start in range(0, len(vectors), rows)
    ]
    return np.concatenate(found).reshape(latent.shape[1:])
