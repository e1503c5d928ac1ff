"""Latent codecs: entropy-code latents to the payloads of files, and decode them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glc.codec.entropy.ans import AnsDecoder, AnsEncoder, UniformModel
from glc.codec.entropy.fixed_point_walk import BYTES_PER_ELEMENT, LARGE, UNIT, FixedPointWalk
from glc.codec.entropy.integer_nets import (
    check_device,
    check_operations,
    has_foreign,
    to_integer_network,
)
from glc.codec.entropy.region import FIXED_LENGTH, Region
from glc.codec.entropy.row_tiling import halo, in_row_tiles
from glc.codec.entropy.symbols import Decoded, SymbolCoder, Symbols, check_integers
from glc.codec.entropy.tables import ACTIVATION_BITS, SYMBOL_LIMIT, Tables
from glc.codec.stages import CODEBOOK_SEARCH, INTEGER_NETWORKS, Stages
from glc.codec.uncertainty import NO_CELLS, cell_offsets
from glc.errors import InexactError
from glc.models.coder import IndicesMapCoder, TransformCoder
from glc.models.context import QuadtreeContext
from glc.models.protocols import ContextStep
from glc.models.quadtree import STEPS, gate

_BYTES_PER_ELEMENT = 96
"""Memory per element of y: maps in float64, symbols, scale indexes; measured at 8192 x 8192."""


class TransformLatentCodec:
    """Codes the latent of a `TransformCoder`: z, then y in the steps of its context model.

    The networks that predict the symbols' probabilities run in integer arithmetic, the others in floating
    point. All may be a user's own, see `glc.models.protocols`.

    Args:
        coder: the latent transform coder, without projected codebooks.
        device: of the integer networks; it must support float64.

    Raises:
        InexactError: if a network cannot be computed in integers.
        ValueError: if the tables do not fit the coder, or a network returns maps of a wrong shape.
    """

    def __init__(
        self, coder: TransformCoder, tables: Tables, device: torch.device, stage: Stages | None = None
    ) -> None:
        self.coder = coder
        self.device = device
        self.stage = stage or Stages()
        # On a GPU, keep float64 weights: memory is sufficient, and converting them in each call is slow.
        keep = next(coder.parameters()).device.type != "cpu"
        self.synthesis = to_integer_network(coder.hyper.synthesis, "coder.hyper.synthesis", keep).to(device)
        self.context = to_integer_network(coder.context, "coder.context", keep).to(device)
        own = getattr(coder, "gate", None)
        self.gate = None if own is None else to_integer_network(own, "coder.gate", keep).to(device)
        limits = torch.tensor(tables.thresholds, dtype=torch.float64, device=device)
        self.thresholds = limits / (1 << ACTIVATION_BITS)
        density: Any = getattr(coder.hyper, "density", None)
        z_channels, codes = None if density is None else density.channels, 0
        if density is None:
            quantizer: Any = coder.hyper.quantizer
            codes, embedding = quantizer.size, getattr(quantizer, "embedding", None)
            if getattr(quantizer, "projection", None) is not None or (
                embedding is not None and not embedding.isfinite().all()
            ):
                raise InexactError("the codebook of z must be stored as finite codewords")
        self._y_tables = tables.y
        self.coding = SymbolCoder(
            tables, self.context.channels, coder.stride, z_channels, codes, coder.num_rates
        )
        self._own = not has_foreign(coder.hyper, coder.context) and type(coder.context) is QuadtreeContext
        if has_foreign(coder.hyper, coder.context):
            self._check_foreign()

    @torch.no_grad()
    def _check_foreign(self) -> None:
        """Run a user's own networks once on a tiny map, to check their operations and shapes."""
        z = torch.zeros(
            (1, *self.coding.z_shape((2 * self.coder.stride, 3 * self.coder.stride))), dtype=torch.int64
        )
        hyper, context, n = self.coder.hyper, self.context, self.context.channels
        check_operations(hyper, "coder.hyper", lambda: self._z_hat(z))
        z_hat = self._z_hat(z)
        check_operations(self.synthesis, "coder.hyper.synthesis", lambda: self.synthesis(z_hat))
        prior = self.synthesis(z_hat)
        wanted = (1, 3 * n, 2 * self.coder.stride, 3 * self.coder.stride)
        if tuple(prior.shape) != wanted:
            raise ValueError(
                f"coder.hyper.synthesis returns {list(prior.shape)} for z {list(z.shape)}, but the context "
                f"model of {n} channels needs {list(wanted)}; correct its layers or its `downsampling`"
            )

        def walk() -> None:
            for step in context.walk(prior):
                step.symbols = torch.zeros_like(step.means, dtype=torch.int32)

        check_operations(context, "coder.context", walk)
        if not bool((context.masks(*wanted[2:]).sum(0) == 1).all()):
            raise ValueError("coder.context: the masks must cover each element in exactly one step")

    def memory(self, batch: int, size: tuple[int, int]) -> int:
        """Return the bytes of the maps for a batch of latents of h x w."""
        elements = batch * self.context.channels * size[0] * size[1]
        return (BYTES_PER_ELEMENT if self._is_large(elements) else _BYTES_PER_ELEMENT) * elements

    def _is_large(self, elements: int) -> bool:
        fits = self._own and self.gate is None and self.coder.stride % 2 == 0
        return fits and elements > LARGE

    def encode(
        self, latent: Tensor, rate_index: Tensor, weights: np.ndarray | None = None
    ) -> tuple[list[bytes], Symbols]:
        """Return the payloads and the symbols of latents l `[B, C, h, w]` at rate indexes `[B]`.

        Args:
            weights: of a region of interest, see `glc.codec.entropy.region`.
        """
        y = self._transform("g_a", self.coder.analysis, latent, rate_index)
        if not y.isfinite().all():
            raise ValueError("the transform of the image is not finite; check the weights")

        def indices_of(y: Tensor) -> tuple[Tensor]:
            indices = self.coder.hyper(y).indices
            return (indices if indices.ndim == 4 else indices[:, None],)

        with self.stage("h_a, C_h"):
            radius = None if has_foreign(self.coder.hyper) else halo(self.coder.hyper.analysis)
            (z,) = in_row_tiles(indices_of, (y,), radius, 1 / self.coder.stride)
        z = (z if self.coding.z_channels else z[:, 0]).clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT)
        y = y.to(self.device)

        region = None if weights is None else Region(weights, self._y_tables)

        def choose(residual: Tensor, indexes: Tensor, rows: slice) -> Tensor:
            if region is not None:
                chosen = region.choose(residual.cpu().numpy(), indexes.cpu().numpy(), rows)
                return torch.from_numpy(chosen).to(self.device)
            return residual.round_().clamp_(-SYMBOL_LIMIT, SYMBOL_LIMIT).to(torch.int32)

        if self._is_large(y.numel()):
            walk = self._fixed_point_walk(z)
            walk.y = y
            del y  # freed with the walk
            return self._write_large(
                z,
                walk,
                lambda rows: choose(walk.residual(rows), walk.indexes[:, :, rows], rows),
                rate_index,
            )

        def choose_whole(step: ContextStep) -> Tensor:
            residual = y.double().div_(step.quant_step).sub_(step.means)
            residual = residual if step.rho is None else residual.div_(step.rho)
            return choose(residual, step.scales, slice(None))

        return self._write(z, choose_whole, rate_index)

    def check(self, symbols: Symbols, size: tuple[int, int]) -> None:
        """Check that symbols are valid for one latent of h x w.

        Raises:
            ValueError: for another shape or type, or values out of range.
        """
        self.coding.check(symbols, size)

    def write(self, symbols: Symbols, rate_index: Tensor) -> list[bytes]:
        """Return the payloads of given symbols at rate indexes `[B]`; the same bytes on every machine."""
        y, z = torch.as_tensor(symbols.y).to(self.device), torch.as_tensor(symbols.z)
        if self._is_large(y.numel()):
            return self._write_large(z, self._fixed_point_walk(z), lambda rows: y[:, :, rows], rate_index)[0]
        return self._write(z, lambda step: y, rate_index)[0]

    def _fixed_point_walk(self, z: Tensor) -> FixedPointWalk:
        with self.stage(INTEGER_NETWORKS):
            return FixedPointWalk(
                self.context, self.synthesis, self._indexes, self._z_hat(z), self.coder.stride
            )

    def _advance(self, walk: FixedPointWalk, k: int) -> None:
        with self.stage(INTEGER_NETWORKS):
            walk.advance(k)

    def _write_large(
        self, z: Tensor, walk: FixedPointWalk, choose: Callable[[slice], Tensor], rate_index: Tensor
    ) -> tuple[list[bytes], Symbols]:
        """Return the payloads and symbols of a large latent; `choose` returns the symbols of some rows."""
        symbols = torch.zeros(walk.indexes.shape, dtype=torch.int32, device=self.device)
        indexes = torch.zeros_like(walk.indexes)
        for k in range(STEPS):
            for rows in walk.tiles():
                chosen, mask = choose(rows), walk.mask(k, rows)
                walk.set(k, rows, chosen)
                for whole, part in ((symbols, chosen), (indexes, walk.indexes[:, :, rows])):
                    whole[:, :, rows] = torch.where(mask, part, whole[:, :, rows])
            self._advance(walk, k + 1)
        walk.free()
        masks = self.context.masks(*symbols.shape[-2:])[:, 0].numpy()
        symbols = symbols.cpu()
        z, rates = z.cpu(), rate_index.tolist()
        payloads = self.coding.write(z.numpy(), symbols.numpy(), indexes.cpu().numpy(), masks, rates)
        return payloads, Symbols(z, symbols)

    def _write(
        self, z: Tensor, choose: Callable[[ContextStep], Tensor], rate_index: Tensor
    ) -> tuple[list[bytes], Symbols]:
        symbols = indexes = torch.zeros((), dtype=torch.int32, device=self.device)
        for step in self._walk(z, rate_index):
            step.symbols = choose(step)
            symbols = torch.where(step.mask, step.symbols, symbols)
            indexes = torch.where(step.mask, step.scales, indexes)
        # Copy from the device once, at the end: the loop above runs without synchronisation.
        symbols, z, indexes = symbols.cpu(), z.cpu(), indexes.cpu()
        masks = self.context.masks(*symbols.shape[-2:])[:, 0].numpy()
        rates = rate_index.tolist()
        payloads = self.coding.write(z.numpy(), symbols.numpy(), indexes.numpy(), masks, rates)
        return payloads, Symbols(z, symbols)

    def decode(self, payloads: Sequence[bytes], size: tuple[int, int], rate_index: Tensor) -> Decoded:
        """Decode payloads.

        Args:
            payloads: of B images of one size.
            size: h, w of the latent.
            rate_index: rate indexes `[B]`.

        Raises:
            CorruptFileError: if a payload is corrupt.
        """
        symbols, y_hat = self._decode(payloads, size, rate_index)[:2]
        y_hat = y_hat.to(rate_index.device, torch.float32)
        return Decoded(symbols, self._transform("g_s", self.coder.synthesis, y_hat, rate_index))

    def decode_cell(
        self, payloads: Sequence[bytes], size: tuple[int, int], rate_index: Tensor, draws: int
    ) -> Iterator[Tensor]:
        """Yield l_hat of payloads, then that of other points in the quantisation cells of y."""
        _, centre, quant_step = self._decode(payloads, size, rate_index)
        if not quant_step.is_floating_point():
            quant_step = quant_step.float().div_(UNIT)
        for draw in range(draws + 1):
            y_hat = centre
            if draw:
                offsets = torch.from_numpy(cell_offsets(tuple(y_hat.shape), draw)).to(y_hat)
                y_hat = torch.addcmul(y_hat, offsets, quant_step)
            y_hat = y_hat.to(rate_index.device, torch.float32)
            yield self._transform("g_s", self.coder.synthesis, y_hat, rate_index)

    def _decode(
        self, payloads: Sequence[bytes], size: tuple[int, int], rate_index: Tensor
    ) -> tuple[Symbols, Tensor, Tensor]:
        """Return the symbols of payloads, y_hat and the sizes of its cells (integers: units of 2^-12)."""
        stacks = [AnsDecoder(payload) for payload in payloads]
        z = torch.from_numpy(self.coding.pop_z(stacks, size, rate_index.tolist()))
        symbols = torch.zeros(
            len(stacks), self.context.channels, *size, dtype=torch.int32, device=self.device
        )
        if self._is_large(symbols.numel()):
            return self._decode_large(stacks, z, symbols)
        for step in self._walk(z, rate_index):
            # All images together: one synchronisation with the device per step.
            mask, indexes = step.mask[0].cpu().numpy(), step.scales.cpu().numpy()
            decoded = self.coding.pop_y(stacks, mask, indexes)
            step.symbols = torch.from_numpy(decoded).to(self.device)
            symbols += step.symbols
        for stack in stacks:
            stack.finish()
        cell = step.quant_step if step.rho is None else step.quant_step * step.rho
        return Symbols(z, symbols.cpu()), step.y_hat, cell

    def _decode_large(
        self, stacks: Sequence[AnsDecoder], z: Tensor, symbols: Tensor
    ) -> tuple[Symbols, Tensor, Tensor]:
        """Return what `_decode` returns, of a large latent; writes the symbols to a map of zeros."""
        walk = self._fixed_point_walk(z)
        for k in range(STEPS):
            mask, indexes = walk.complete_mask(k)[0].cpu().numpy(), walk.indexes.cpu().numpy()
            symbols += torch.from_numpy(self.coding.pop_y(stacks, mask, indexes)).to(self.device)
            del mask, indexes  # before their successors are computed
            for rows in walk.tiles():
                walk.set(k, rows, symbols[:, :, rows])
            self._advance(walk, k + 1)
        for stack in stacks:
            stack.finish()
        return Symbols(z, symbols.cpu()), *walk.finish()

    def decode_z(self, payloads: Sequence[bytes], size: tuple[int, int], rate_index: Tensor) -> Tensor:
        """Return the l_hat `[B, C, h, w]` that the hyper-latents z alone predict (paper figure 5)."""
        stacks = [AnsDecoder(payload) for payload in payloads]
        z = torch.from_numpy(self.coding.pop_z(stacks, size, rate_index.tolist()))
        return self.coder.decode_z(z.to(rate_index.device), rate_index)

    def prior(self, z: Tensor) -> Tensor:
        """Return the prior `[B, 3N, h, w]` that z predicts, float64, on the integer networks' device."""
        z_hat, stride = self._z_hat(z), self.coder.stride
        with self.stage(INTEGER_NETWORKS):
            (prior,) = in_row_tiles(lambda z: (self.synthesis(z),), (z_hat,), halo(self.synthesis), stride)
        return prior

    def _rho(self, z: Tensor, rate_index: Tensor) -> Tensor | None:
        """Return the factor of the quantisation steps `[B, 1, h, w]`; None without a gate."""
        network = self.gate
        if network is None:
            return None
        rate = rate_index.to(self.device)
        with self.stage(INTEGER_NETWORKS):
            (rho,) = in_row_tiles(
                lambda z: (network(z, rate),), (self._z_hat(z),), halo(network), self.coder.stride
            )
        return rho

    def _walk(self, z: Tensor, rate_index: Tensor) -> Iterator[ContextStep]:
        """Walk the context model; the scales of a step become table indexes, int32."""

        def run(
            compute: Callable[..., tuple[Tensor, ...]],
            maps: tuple[Tensor, ...],
            networks: tuple[nn.Module, ...],
        ) -> tuple[Tensor, ...]:
            with self.stage(INTEGER_NETWORKS):
                return in_row_tiles(compute, maps, halo(*networks))

        rho = self._rho(z, rate_index)
        if rho is None:
            return self.context.walk(self.prior(z), run, self._indexes)
        return gate(self.context.walk(self.prior(z), run), rho, self._indexes)

    def _indexes(self, scales: Tensor) -> Tensor:
        return torch.bucketize(scales.contiguous(), self.thresholds, right=True, out_int32=True)

    def _z_hat(self, z: Tensor) -> Tensor:
        z_hat = self.coder.hyper.decode(z.to(next(self.coder.parameters()).device))
        return z_hat.to(self.device, torch.float64)

    def _transform(self, name: str, transform: nn.Module, x: Tensor, rate_index: Tensor) -> Tensor:
        """Return g_a or g_s of a map, float32."""
        with self.stage(name):
            (out,) = in_row_tiles(lambda tile: (transform(tile, rate_index).float(),), (x,), halo(transform))
        return out


class IndicesMapLatentCodec:
    """Codes the latent of an `IndicesMapCoder`: one fixed-length index per position."""

    def __init__(self, coder: IndicesMapCoder, stage: Stages | None = None) -> None:
        self.coder = coder
        self.stage = stage or Stages()
        self.models = [UniformModel(size) for size in coder.sizes]

    def memory(self, batch: int, size: tuple[int, int]) -> int:
        """Return the bytes of the indices for a batch of latents of h x w."""
        return 8 * batch * size[0] * size[1]

    def encode(
        self, latent: Tensor, rate_index: Tensor, weights: np.ndarray | None = None
    ) -> tuple[list[bytes], Symbols]:
        """Return the payloads and the symbols of latents l `[B, C, h, w]` at integer rate indexes `[B]`.

        Raises:
            ValueError: weights are given.
        """
        if weights is not None:
            raise ValueError(FIXED_LENGTH)
        with self.stage(CODEBOOK_SEARCH):
            indices = self.coder(latent, rate_index).symbols.to(torch.int32)
        indices = indices.cpu()
        symbols = Symbols(indices.new_zeros(len(indices), 0).long(), indices)
        return self.write(symbols, rate_index), symbols

    def check(self, symbols: Symbols, size: tuple[int, int]) -> None:
        """Check that symbols are valid for one latent of h x w; see `TransformLatentCodec.check`."""
        check_integers("y", symbols.y, (1, *size), 0, max(self.coder.sizes) - 1)

    def write(self, symbols: Symbols, rate_index: Tensor) -> list[bytes]:
        """Return the payloads of given symbols at integer rate indexes `[B]`.

        Raises:
            ValueError: if an index is out of range for its rate index.
        """
        payloads = []
        for point, values in zip(rate_index.tolist(), np.asarray(symbols.y), strict=True):
            size = self.coder.sizes[int(point)]
            if values.size and int(values.max()) >= size:
                raise ValueError(f"y must lie in [0, {size - 1}] at rate point {int(point)}")
            stack = AnsEncoder()
            self.models[int(point)].push(stack, values.ravel())
            payloads.append(stack.payload())
        return payloads

    def decode(self, payloads: Sequence[bytes], size: tuple[int, int], rate_index: Tensor) -> Decoded:
        """Decode payloads; see `TransformLatentCodec.decode`."""
        indices, latents = [], []
        for payload, point in zip(payloads, rate_index.tolist(), strict=True):
            stack = AnsDecoder(payload)
            values = self.models[int(point)].pop(stack, size[0] * size[1])
            stack.finish()
            indices.append(torch.from_numpy(values).view(1, *size))
            codebook = self.coder.codebooks[int(point)]
            latents.append(codebook.decode(indices[-1].long().to(rate_index.device)))  # type: ignore[operator]
        symbols = torch.cat(indices)
        return Decoded(Symbols(symbols.new_zeros(len(payloads), 0).long(), symbols), torch.cat(latents))

    def decode_cell(
        self, payloads: Sequence[bytes], size: tuple[int, int], rate_index: Tensor, draws: int
    ) -> Iterator[Tensor]:
        """Raise an error: there are no quantisation cells.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_CELLS)

    def decode_z(self, payloads: Sequence[bytes], size: tuple[int, int], rate_index: Tensor) -> Tensor:
        """Raise an error: there is no hyper-latent.

        Raises:
            ValueError: always.
        """
        raise ValueError("an indices-map codec has no hyper-latent; decode the image instead")


LatentCodec = TransformLatentCodec | IndicesMapLatentCodec


def make_latent_codec(
    coder: TransformCoder | IndicesMapCoder,
    tables: Tables,
    device: torch.device | str = "cpu",
    stage: Stages | None = None,
) -> LatentCodec:
    """Return the latent codec of a coder.

    Args:
        device: of the coder; the integer networks run on the CPU if the device's products are not exact.

    Raises:
        InexactError: if a network cannot be computed in integers; the message names the layer.
        ValueError: if the tables do not fit the coder.
    """
    if isinstance(coder, IndicesMapCoder):
        return IndicesMapLatentCodec(coder, stage)
    device = torch.device(device)
    if device.type != "cpu":
        try:
            check_device(device)
        except InexactError:
            device = torch.device("cpu")
    if device.type == "cpu":
        check_device(device)
    return TransformLatentCodec(coder, tables, device, stage)
