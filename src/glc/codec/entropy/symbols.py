"""The integers of files, and how those of a `TransformCoder` become payloads. Needs no PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glc.codec.entropy.ans import AnsDecoder, AnsEncoder, IndexModel, IntegerModel, UniformModel
from glc.codec.entropy.tables import SYMBOL_LIMIT, Tables

_CHOICE = UniformModel(2)
"""Of the bit that names the model of z, where there are tables per rate point."""


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
        num_rates: K, for tables per rate point.

    Raises:
        ValueError: the tables of z do not fit.
    """

    def __init__(
        self,
        tables: Tables,
        channels: int,
        stride: int,
        z_channels: int | None,
        codebook_size: int = 0,
        num_rates: int = 1,
    ) -> None:
        self.channels, self.stride, self.z_channels = channels, stride, z_channels
        self.y_model = IntegerModel(tables.y)
        self.z_model: IndexModel | UniformModel | IntegerModel
        self.z_rate_models: list[IndexModel] = []
        if z_channels is not None:
            self.z_limits = (-SYMBOL_LIMIT, SYMBOL_LIMIT)
            if len(tables.z) != z_channels:
                raise ValueError(f"z needs one table for each of {z_channels} channels")
            self.z_model = IntegerModel(tables.z)
            return
        self.z_limits = (0, codebook_size - 1)
        if len(tables.z) > 1 or any(
            len(table.frequencies) != codebook_size or table.low != 0
            for table in (*tables.z, *tables.z_rates)
        ):
            raise ValueError(f"the table of z must be one of the indices 0 to {codebook_size - 1}")
        if tables.z_rates and len(tables.z_rates) != num_rates:
            raise ValueError(
                f"z needs one table for each of {num_rates} rate points, not {len(tables.z_rates)}"
            )
        self.z_model = IndexModel(tables.z[0]) if tables.z else UniformModel(codebook_size)
        self.z_rate_models = [IndexModel(table) for table in tables.z_rates]

    def _z_choices(self, rate_index: float) -> tuple[IndexModel | UniformModel, ...]:
        """Return the models of which a file names one: the nearest rate point's table, or fixed length."""
        assert isinstance(self.z_model, UniformModel)
        return self.z_rate_models[int(rate_index + 0.5)], self.z_model

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

    def write(
        self, z: np.ndarray, y: np.ndarray, indexes: np.ndarray, masks: np.ndarray, rates: Sequence[float]
    ) -> list[bytes]:
        """Return the payloads of a batch.

        Args:
            z: `[B, ...]`.
            y: `[B, N, h, w]`.
            indexes: of the tables of y, of its shape.
            masks: elements of each step, `[steps, N, h, w]`.
            rates: rate indexes `[B]`, in `[0, K - 1]`.
        """
        payloads = []
        for z_values, values, table_indexes, rate in zip(z, y, indexes, rates, strict=True):
            stack = AnsEncoder()
            for mask in masks[::-1]:
                self.y_model.push(stack, values[mask], table_indexes[mask])
            payloads.append(self._with_z(stack, z_values, rate))
        return payloads

    def _with_z(self, stack: AnsEncoder, z: np.ndarray, rate: float) -> bytes:
        """Return the payload of a stack after z was pushed; of several models for z, the shortest."""
        if isinstance(self.z_model, IntegerModel):
            self.z_model.push(stack, z.ravel(), _channels(z.shape))
            return stack.payload()
        if not self.z_rate_models:
            self.z_model.push(stack, z.ravel())
            return stack.payload()
        payloads = []
        for choice, model in enumerate(self._z_choices(rate)):
            own = stack.copy()
            model.push(own, z.ravel())
            _CHOICE.push(own, np.array([choice]))
            payloads.append(own.payload())
        return min(payloads, key=len)  # the first of equal length: the table

    def pop_z(
        self, stacks: Sequence[AnsDecoder], size: tuple[int, int], rates: Sequence[float]
    ) -> np.ndarray:
        """Decode z of latents of h x w at rate indexes `[B]`, int64 `[B, ...]`."""
        shape = self.z_shape(size)
        popped = [self._pop_z(stack, shape, rate) for stack, rate in zip(stacks, rates, strict=True)]
        return np.stack(popped).reshape(-1, *shape).astype(np.int64)

    def _pop_z(self, stack: AnsDecoder, shape: tuple[int, ...], rate: float) -> np.ndarray:
        if isinstance(self.z_model, IntegerModel):
            return self.z_model.pop(stack, _channels(shape))
        model: IndexModel | UniformModel = self.z_model
        if self.z_rate_models:
            model = self._z_choices(rate)[int(_CHOICE.pop(stack, 1)[0])]
        return model.pop(stack, int(np.prod(shape)))

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
