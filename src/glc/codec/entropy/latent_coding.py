"""Between a latent and the payload of a file: what is coded, in which order, under which probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from glc.codec.entropy.ans import (
    Decoder,
    Encoder,
    IndexModel,
    IntegerModel,
    UniformModel,
)
from glc.codec.entropy.integer_nets import ACTIVATION_BITS, exact
from glc.codec.entropy.row_tiling import in_slabs, reach
from glc.codec.entropy.tables import SYMBOL_LIMIT, Tables
from glc.errors import InexactError
from glc.models.coder import IndicesMapCoder, TransformCoder
from glc.models.context import STEPS, quadtree_masks
from glc.models.hyperprior import CategoricalHyperprior

_BYTES = 96
"""Memory that an element of y takes: maps in float64, symbols, classes; measured at 8192 x 8192."""


@dataclass(frozen=True)
class Symbols:
    """The integers in a file, or in a batch of files."""

    z: Tensor
    """int64, `[B, h / 4, w / 4]` indices into C_h; factorised `[B, N, h / 4, w / 4]`; indices-map: empty."""
    y: Tensor
    """int32 `[B, N, h, w]`; indices-map: indices `[B, h, w]`."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Symbols):
            return NotImplemented
        return torch.equal(self.z, other.z) and torch.equal(self.y, other.y)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Decoded:
    """What a payload says of the latent."""

    symbols: Symbols
    latent_hat: Tensor
    """l_hat `[B, C, h, w]`."""


_Choose = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From a step's mask `[1, N, h, w]`, classes, means and steps `[B, N, h, w]` to its symbols, int32, zero
outside the mask."""


def _check(name: str, values: Tensor, shape: tuple[int, ...], low: int, high: int) -> None:
    if values.is_floating_point() or tuple(values.shape) != shape:
        raise ValueError(
            f"{name} must be whole numbers of shape {list(shape)}, got {values.dtype} {list(values.shape)}"
        )
    if values.numel() and not low <= int(values.min()) <= int(values.max()) <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}]")


class TransformPayload:
    """The payload of a `TransformCoder`: z, then y in the four steps of the quadtree.

    The networks between the symbols and their probabilities run in exact arithmetic, the others as they are.

    Args:
        coder: the latent transform coder, without projected codebooks.
        tables: its frequency tables.
        device: where the exact networks run; it must have float64.

    Raises:
        InexactError: when a network cannot be computed exactly.
        ValueError: when the tables are not those of the coder.
    """

    def __init__(self, coder: TransformCoder, tables: Tables, device: torch.device) -> None:
        self.coder = coder
        self.device = device
        # A GPU has the memory for copies in float64, and less time to make them.
        keep = next(coder.parameters()).device.type != "cpu"
        self.synthesis = exact(coder.hyper.synthesis, "coder.hyper.synthesis", keep).to(device)
        self.context = exact(coder.context, "coder.context", keep).to(device)
        limits = torch.tensor(tables.thresholds, dtype=torch.float64, device=device)
        self.thresholds = limits / (1 << ACTIVATION_BITS)
        self.y_model = IntegerModel(tables.y)
        self.index_model: IndexModel | UniformModel | None = None
        if isinstance(coder.hyper, CategoricalHyperprior):
            quantizer = coder.hyper.quantizer
            size = quantizer.size
            if quantizer.projection is not None or not quantizer.embedding.isfinite().all():
                raise InexactError("the codebook of z must be stored as finite codes")
            if tables.z and (
                len(tables.z) != 1 or len(tables.z[0].frequencies) != size or tables.z[0].low != 0
            ):
                raise ValueError(f"the table of z must be one of the indices 0 to {size - 1}")
            self.index_model = IndexModel(tables.z[0]) if tables.z else UniformModel(size)
        else:
            if len(tables.z) != coder.context.channels:
                raise ValueError(f"z needs one table for each of {coder.context.channels} channels")
            self.z_model = IntegerModel(tables.z)

    def memory(self, batch: int, size: tuple[int, int]) -> int:
        """Return the bytes that the maps of so many latents of h x w take."""
        return _BYTES * batch * self.context.channels * size[0] * size[1]

    def encode(self, latent: Tensor, rate: Tensor) -> tuple[list[bytes], Symbols]:
        """Return the payloads for latents l `[B, C, h, w]` at rate points `[B]`, and what they hold."""
        (y,) = in_slabs(
            lambda part: (self.coder.analysis(part, rate).float(),), (latent,), reach(self.coder.analysis)
        )
        if not y.isfinite().all():
            raise ValueError("the transform of the picture is not finite: the weights do not fit pictures")
        (indices,) = in_slabs(
            self._hyper_indices, (y,), reach(self.coder.hyper.analysis), 1 / self.coder.stride
        )
        if self.index_model is not None:
            indices = indices[:, 0]
        indices = indices.clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT)
        y = y.to(self.device)

        def choose(mask: Tensor, means: Tensor, steps: Tensor) -> Tensor:
            symbols = y.double().div_(steps).sub_(means).round_().clamp_(-SYMBOL_LIMIT, SYMBOL_LIMIT)
            return symbols.mul_(mask).to(torch.int32)

        return self._write(indices, choose)

    def _hyper_indices(self, y: Tensor) -> tuple[Tensor]:
        """Return what is sent for z, with the dimension of channels."""
        indices = self.coder.hyper(y).indices
        return (indices if indices.ndim == 4 else indices[:, None],)

    def check(self, symbols: Symbols, size: tuple[int, int]) -> None:
        """Check that symbols are those of one latent of h x w.

        Raises:
            ValueError: when they have another shape or type, or lie outside of what can be coded.
        """
        h, w = (side // self.coder.stride for side in size)
        n = self.context.channels
        _check("y", symbols.y, (1, n, *size), -SYMBOL_LIMIT, SYMBOL_LIMIT)
        if isinstance(self.coder.hyper, CategoricalHyperprior):
            _check("z", symbols.z, (1, h, w), 0, self.coder.hyper.quantizer.size - 1)
        else:
            _check("z", symbols.z, (1, n, h, w), -SYMBOL_LIMIT, SYMBOL_LIMIT)

    def write(self, symbols: Symbols, rate: Tensor) -> list[bytes]:
        """Return the payloads that hold given symbols at rate points `[B]`.

        Integers in, the same bytes on every machine.
        """
        y = symbols.y.to(self.device)
        return self._write(symbols.z, lambda mask, means, steps: torch.where(mask, y, 0))[0]

    def _write(
        self, indices: Tensor, choose: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> tuple[list[bytes], Symbols]:
        noted: Tensor | None = None

        def choose_and_note(mask: Tensor, classes: Tensor, means: Tensor, steps: Tensor) -> Tensor:
            nonlocal noted
            noted = classes if noted is None else torch.where(mask, classes, noted)
            return choose(mask, means, steps)

        found, _ = self._code(self._prior(indices), choose_and_note)
        assert noted is not None
        # Off the device once, when all is chosen: until then nothing waits for it.
        symbols, indices, classes = found.cpu(), indices.cpu(), noted.cpu()
        masks = quadtree_masks(self.context.channels, *symbols.shape[-2:])[:, 0].numpy()
        payloads = []
        for values, of_each, z in zip(symbols.numpy(), classes.numpy(), indices.numpy(), strict=True):
            stack = Encoder()
            for mask in masks[::-1]:
                self.y_model.push(stack, values[mask], of_each[mask])
            self._push_z(stack, z)
            payloads.append(stack.payload())
        return payloads, Symbols(indices, symbols)

    def decode(self, payloads: Sequence[bytes], size: tuple[int, int], rate: Tensor) -> Decoded:
        """Return what payloads hold.

        Args:
            payloads: of pictures of one size, B of them.
            size: h, w of the latent.
            rate: rate points `[B]`.

        Raises:
            DamagedError: when a payload is not what an encoder writes.
        """
        stacks = [Decoder(payload) for payload in payloads]
        indices = self._pop_z(stacks, size)

        def choose(mask: Tensor, classes: Tensor, means: Tensor, steps: Tensor) -> Tensor:
            # All pictures together: one wait for the device in a step.
            where, known = mask[0].cpu().numpy(), classes.cpu().numpy()
            symbols = np.zeros(known.shape, np.int32)
            for values, of_each, stack in zip(symbols, known, stacks, strict=True):
                values[where] = self.y_model.pop(stack, of_each[where])
            return torch.from_numpy(symbols).to(self.device)

        symbols, y_hat = self._code(self._prior(indices), choose)
        for stack in stacks:
            stack.finish()
        synthesis = self.coder.synthesis
        (latent_hat,) = in_slabs(
            lambda part: (synthesis(part, rate).float(),),
            (y_hat.to(rate.device, torch.float32),),
            reach(synthesis),
        )
        return Decoded(Symbols(indices, symbols.cpu()), latent_hat)

    def decode_z(self, payloads: Sequence[bytes], size: tuple[int, int], rate: Tensor) -> Tensor:
        """Return the l_hat `[B, C, h, w]` that the hyper codes alone predict (paper figure 5)."""
        indices = self._pop_z([Decoder(payload) for payload in payloads], size)
        return self.coder.decode_z(indices.to(rate.device), rate)

    def _prior(self, indices: Tensor) -> Tensor:
        z_hat = self.coder.hyper.decode(indices.to(next(self.coder.parameters()).device))
        (prior,) = in_slabs(
            lambda part: (self.synthesis(part),),
            (z_hat.to(self.device, torch.float64),),
            reach(self.synthesis),
            self.coder.stride,
        )
        return prior

    def _code(self, prior: Tensor, choose: _Choose) -> tuple[Tensor, Tensor]:
        """Walk the quadtree; return the symbols that `choose` gave, int32, and y_hat, float64."""
        context = self.context
        steps, scales, means, reduced = in_slabs(context.split_prior, (prior,), 0)
        del prior
        masks = quadtree_masks(context.channels, means.shape[-2], means.shape[-1], means.device)
        y_hat = torch.zeros_like(means)
        all_symbols = torch.zeros(means.shape, dtype=torch.int32, device=means.device)
        classes = self._classes(scales)
        del scales
        for k in range(STEPS):
            if k > 0:
                classes, means = in_slabs(
                    partial(self._predict, k),
                    (y_hat, reduced),
                    reach(context.adaptors[k - 1], context.shared),
                )
            symbols = choose(masks[k], classes, means, steps)
            all_symbols += symbols
            y_hat = torch.where(masks[k], symbols + means, y_hat)
        return all_symbols, y_hat * steps

    def _predict(self, k: int, y_hat: Tensor, reduced: Tensor) -> tuple[Tensor, Tensor]:
        """Return classes and means of a step."""
        scales, means = self.context.predict(k, y_hat, reduced)
        return self._classes(scales), means

    def _classes(self, scales: Tensor) -> Tensor:
        return torch.bucketize(scales.contiguous(), self.thresholds, right=True, out_int32=True)

    def _push_z(self, stack: Encoder, indices: np.ndarray) -> None:
        if self.index_model is not None:
            self.index_model.push(stack, indices.ravel())
        else:
            self.z_model.push(stack, indices.ravel(), self._channels(indices.shape))

    def _pop_z(self, stacks: Sequence[Decoder], size: tuple[int, int]) -> Tensor:
        h, w = (side // self.coder.stride for side in size)
        shape = (h, w) if self.index_model is not None else (self.context.channels, h, w)
        count = int(np.prod(shape))
        popped = [
            self.index_model.pop(stack, count)
            if self.index_model is not None
            else self.z_model.pop(stack, self._channels(shape))
            for stack in stacks
        ]
        return torch.from_numpy(np.stack(popped).reshape(-1, *shape)).long()

    @staticmethod
    def _channels(shape: Sequence[int]) -> np.ndarray:
        return np.repeat(np.arange(shape[0]), int(np.prod(shape[1:])))


class IndicesMapPayload:
    """The payload of an `IndicesMapCoder`: one index per position of the latent, all of one length."""

    def __init__(self, coder: IndicesMapCoder) -> None:
        self.coder = coder
        self.models = [UniformModel(size) for size in coder.sizes]

    def memory(self, batch: int, size: tuple[int, int]) -> int:
        """Return the bytes that the indices of so many latents of h x w take."""
        return 8 * batch * size[0] * size[1]

    def encode(self, latent: Tensor, rate: Tensor) -> tuple[list[bytes], Symbols]:
        """Return the payloads for latents l `[B, C, h, w]` at whole rate points `[B]`, and what they hold."""
        indices = self.coder(latent, rate).symbols.to(torch.int32).cpu()
        symbols = Symbols(indices.new_zeros(len(indices), 0).long(), indices)
        return self.write(symbols, rate), symbols

    def check(self, symbols: Symbols, size: tuple[int, int]) -> None:
        """Check that symbols are indices for one latent of h x w; see `TransformPayload.check`."""
        _check("y", symbols.y, (1, *size), 0, max(self.coder.sizes) - 1)

    def write(self, symbols: Symbols, rate: Tensor) -> list[bytes]:
        """Return the payloads that hold given symbols at whole rate points `[B]`.

        Raises:
            ValueError: when an index is none of its rate point's.
        """
        payloads = []
        for point, values in zip(rate.tolist(), symbols.y.numpy(), strict=True):
            size = self.coder.sizes[int(point)]
            if values.size and int(values.max()) >= size:
                raise ValueError(f"y must lie in [0, {size - 1}] at rate point {int(point)}")
            stack = Encoder()
            self.models[int(point)].push(stack, values.ravel())
            payloads.append(stack.payload())
        return payloads

    def decode(self, payloads: Sequence[bytes], size: tuple[int, int], rate: Tensor) -> Decoded:
        """Return what payloads hold; see `TransformPayload.decode`."""
        indices, latents = [], []
        for payload, point in zip(payloads, rate.tolist(), strict=True):
            stack = Decoder(payload)
            values = self.models[int(point)].pop(stack, size[0] * size[1])
            stack.finish()
            indices.append(torch.from_numpy(values).view(1, *size))
            codebook = self.coder.codebooks[int(point)]
            latents.append(codebook.decode(indices[-1].long().to(rate.device)))  # type: ignore[operator]
        symbols = torch.cat(indices)
        return Decoded(Symbols(symbols.new_zeros(len(payloads), 0).long(), symbols), torch.cat(latents))

    def decode_z(self, payloads: Sequence[bytes], size: tuple[int, int], rate: Tensor) -> Tensor:
        """Say that there is no hyper code.

        Raises:
            ValueError: always.
        """
        raise ValueError("indices-map coding has no hyper code to decode alone")
