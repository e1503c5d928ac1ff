"""The integers of files, and how those of a `TransformCoder` become payloads. Needs no PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glc.codec.entropy.ans import AnsDecoder, AnsEncoder, IndexModel, IntegerModel, UniformModel
from glc.codec.entropy.tables import SYMBOL_LIMIT, Tables


@dataclass(frozen=True)
class Symbols:
    """The integers of a file, or of a batch of files: tensors, or arrays from the backend `onnx`."""

    z: Any
    """int64: indices into C_h `[B, h / 4, w / 4]`; factorised: `[B, N, h / 4, w / 4]`; indices map: empty."""
    y: Any
    """int32 `[B, N, h, w]`; indices map: indices `[B, h, w]`."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Symbols):
            return NotImplemented
        pairs = ((self.z, other.z), (self.y, other.y))
        return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Decoded:
    """Result of decoding payloads."""

    symbols: Symbols
    latent_hat: Any
    """l_hat `[B, C, h, w]`, a tensor or an array."""


def check_integers(name: str, values: Any, shape: tuple[int, ...], low: int, high: int) -> None:
    """Check an array or tensor of integers.

    Raises:
        ValueError: it has another type or shape, or a value out of range.
    """
    given = np.asarray(values)
    if given.dtype.kind not in "iu" or given.shape != shape:
        raise ValueError(
            f"{name} must be integers of shape {list(shape)}, got {values.dtype} {list(values.shape)}"
        )
    if given.size and not low <= int(given.min()) <= int(given.max()) <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}]")


class SymbolCoder:
    """Entropy-codes z and y of a `TransformCoder` under given table indexes.

    Args:
        tables: frequency tables of the weights.
        channels: N, of y.
        stride: positions of y per position of z along a side.
        z_channels: channels of z if it is coded as integers (factorised); None if it is coded as indices.
        codebook_size: M of C_h, if z is coded as indices.

    Raises:
        ValueError: the tables of z do not fit.
    """

    def __init__(
        self, tables: Tables, channels: int, stride: int, z_channels: int | None, codebook_size: int = 0
    ) -> None:
        self.channels, self.stride, self.z_channels = channels, stride, z_channels
        self.y_model = IntegerModel(tables.y)
        self.z_model: IndexModel | UniformModel | IntegerModel
        if z_channels is not None:
            self.z_limits = (-SYMBOL_LIMIT, SYMBOL_LIMIT)
            if len(tables.z) != z_channels:
                raise ValueError(f"z needs one table for each of {z_channels} channels")
            self.z_model = IntegerModel(tables.z)
            return
        self.z_limits = (0, codebook_size - 1)
        if tables.z and (
            len(tables.z) != 1 or len(tables.z[0].frequencies) != codebook_size or tables.z[0].low != 0
        ):
            raise ValueError(f"the table of z must be one of the indices 0 to {codebook_size - 1}")
        self.z_model = IndexModel(tables.z[0]) if tables.z else UniformModel(codebook_size)

    def z_shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of z for one latent of h x w."""
        small = (size[0] // self.stride, size[1] // self.stride)
        return small if self.z_channels is None else (self.z_channels, *small)

    def check(self, symbols: Symbols, size: tuple[int, int]) -> None:
        """Check that symbols are valid for one latent of h x w.

        Raises:
            ValueError: for another shape or type, or values out of range.
        """
        check_integers("y", symbols.y, (1, self.channels, *size), -SYMBOL_LIMIT, SYMBOL_LIMIT)
        check_integers("z", symbols.z, (1, *self.z_shape(size)), *self.z_limits)

    def write(self, z: np.ndarray, y: np.ndarray, indexes: np.ndarray, masks: np.ndarray) -> list[bytes]:
        """Return the payloads of a batch.

        Args:
            z: `[B, ...]`.
            y: `[B, N, h, w]`.
            indexes: of the tables of y, of its shape.
            masks: elements of each step, `[steps, N, h, w]`.
        """
        payloads = []
        for z_values, values, table_indexes in zip(z, y, indexes, strict=True):
            stack = AnsEncoder()
            for mask in masks[::-1]:
                self.y_model.push(stack, values[mask], table_indexes[mask])
            if isinstance(self.z_model, IntegerModel):
                self.z_model.push(stack, z_values.ravel(), _channels(z_values.shape))
            else:
                self.z_model.push(stack, z_values.ravel())
            payloads.append(stack.payload())
        return payloads

    def pop_z(self, stacks: Sequence[AnsDecoder], size: tuple[int, int]) -> np.ndarray:
        """Decode z of latents of h x w, int64 `[B, ...]`."""
        shape = self.z_shape(size)
        if isinstance(self.z_model, IntegerModel):
            popped = [self.z_model.pop(stack, _channels(shape)) for stack in stacks]
        else:
            popped = [self.z_model.pop(stack, int(np.prod(shape))) for stack in stacks]
        return np.stack(popped).reshape(-1, *shape).astype(np.int64)

    def pop_y(self, stacks: Sequence[AnsDecoder], mask: np.ndarray, indexes: np.ndarray) -> np.ndarray:
        """Decode the elements of one step; int32 `[B, N, h, w]`, zero elsewhere.

        Args:
            mask: elements of the step, `[N, h, w]`.
            indexes: of their tables, `[B, N, h, w]`.
        """
        decoded = np.zeros(indexes.shape, np.int32)
        for values, table_indexes, stack in zip(decoded, indexes, stacks, strict=True):
            values[mask] = self.y_model.pop(stack, table_indexes[mask])
        return decoded


def _channels(shape: Sequence[int]) -> np.ndarray:
    """Return the channel index of each element of a map `[C, h, w]`, flattened."""
    return np.repeat(np.arange(shape[0]), int(np.prod(shape[1:])))
