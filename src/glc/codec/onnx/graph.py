"""Write ONNX graphs, without the packages onnx and protobuf, which are larger than what is needed of them.

A graph is a protocol buffer: each field is a tag (number and wire type) and a varint, four bytes, or bytes
after their length. `Graph.serialize` writes the messages of onnx.proto that a graph of convolutions needs;
the numbers below are those of that file.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

OPSET = 17
"""Version of the operators: read by ONNX Runtime from 1.12, OpenVINO from 2023 and TensorRT from 8.6."""
_IR_VERSION = 8
_TYPES = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}
FLOAT, INT64 = 1, 7
"""Element types of inputs and outputs."""

_STORED_TYPES = {"F32": 1, "F16": 10, "BF16": 16}


class Stored(NamedTuple):
    """Where a file holds a weight."""

    dtype: str
    """As in safetensors: F32, F16 or BF16."""
    offset: int
    length: int
    """In bytes."""


Attribute = int | float | str | Sequence[int]
Dim = int | str


class Graph:
    """A graph under construction; methods that add a node return the name of its result.

    Args:
        name: of the graph.
        weights: the tensors that nodes may use, by name; they become float32.
    """

    def __init__(self, name: str, weights: Mapping[str, np.ndarray]) -> None:
        self.name = name
        self._weights = weights
        self.used: dict[str, np.ndarray] = {}
        """The weights that nodes use, as given."""
        self._constants: dict[str, np.ndarray] = {}
        self._nodes: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []

    def input(self, name: str, kind: int, dims: Sequence[Dim]) -> str:
        """Add an input; named dimensions are free."""
        self._inputs.append(_value(name, kind, dims))
        return name

    def output(self, name: str, value: str, kind: int, dims: Sequence[Dim]) -> None:
        """Add an output, the result of a node under another name."""
        self._nodes.append(_node("Identity", [value], name, {}))
        self._outputs.append(_value(name, kind, dims))

    def weight(self, name: str) -> str:
        """Return the name of a weight.

        Raises:
            KeyError: there is none of that name.
        """
        self.used[name] = self._weights[name]
        return name

    def has(self, name: str) -> bool:
        """Whether there is a weight of a name."""
        return name in self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight."""
        return self._weights[name].shape

    def constant(self, values: float | Sequence[int] | np.ndarray) -> str:
        """Add a constant: a float32 scalar, a list of int64, or an array."""
        array = np.float32(values) if isinstance(values, float) else np.asarray(values)
        array = np.asarray(array, np.float32 if array.dtype.kind == "f" else np.int64)
        name = f"constant_{len(self._constants)}"
        for known, other in self._constants.items():
            if other.dtype == array.dtype and np.array_equal(other, array) and other.shape == array.shape:
                return known
        self._constants[name] = array
        return name

    def node(self, operator: str, *inputs: str, **attributes: Attribute) -> str:
        """Add a node with one result."""
        result = f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(_node(operator, inputs, result, attributes))
        return result

    def floats(self) -> dict[str, np.ndarray]:
        """Return the weights that nodes use in float32."""
        return {name: np.ascontiguousarray(array, np.float32) for name, array in self.used.items()}

    def serialize(self, external: bool | tuple[str, Mapping[str, Stored]] = False) -> bytes:
        """Return the model's bytes.

        Args:
            external: leave the weights out; they are given to the runtime by name, or lie in a file: its
                name and their places in it.
        """
        tensors = [_tensor(name, array) for name, array in self._constants.items()]
        casts: list[bytes] = []
        if isinstance(external, tuple):
            file, places = external
            for name, array in self.used.items():
                tensors.append(_external(f"{name}.stored", array.shape, file, places[name]))
                casts.append(_node("Cast", [f"{name}.stored"], name, {"to": FLOAT}))
        elif external:
            tensors += [_external(name, array.shape, "given") for name, array in self.used.items()]
        else:
            tensors += [_tensor(name, array) for name, array in self.floats().items()]
        graph = b"".join(
            [
                *(_bytes(1, node) for node in casts + self._nodes),
                _bytes(2, self.name.encode()),
                *(_bytes(5, tensor) for tensor in tensors),
                *(_bytes(11, value) for value in self._inputs),
                *(_bytes(12, value) for value in self._outputs),
            ]
        )
        opset = _bytes(1, b"") + _int(2, OPSET)
        return _int(1, _IR_VERSION) + _bytes(2, b"glc") + _bytes(7, graph) + _bytes(8, opset)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers in two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _value(name: str, kind: int, dims: Iterable[Dim]) -> bytes:
    """Return a ValueInfoProto."""
    shape = b"".join(
        _bytes(1, _bytes(2, dim.encode()) if isinstance(dim, str) else _int(1, dim)) for dim in dims
    )
    tensor = _int(1, kind) + _bytes(2, shape)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))


def _tensor(name: str, array: np.ndarray) -> bytes:
    """Return a TensorProto with its values."""
    start = b"".join(_int(1, dim) for dim in array.shape) + _int(2, _TYPES[array.dtype])
    return start + _bytes(8, name.encode()) + _bytes(9, np.ascontiguousarray(array).tobytes())


def _external(name: str, shape: Sequence[int], file: str, place: Stored | None = None) -> bytes:
    """Return a TensorProto whose values are a part of a file, or float32 that are given under its name."""
    kind = FLOAT if place is None else _STORED_TYPES[place.dtype]
    entries = {"location": file}
    if place is not None:
        entries.update(offset=str(place.offset), length=str(place.length))
    start = b"".join(_int(1, dim) for dim in shape) + _int(2, kind) + _bytes(8, name.encode())
    where = (_bytes(1, key.encode()) + _bytes(2, value.encode()) for key, value in entries.items())
    return start + b"".join(_bytes(13, entry) for entry in where) + _int(14, 1)


def _node(operator: str, inputs: Iterable[str], result: str, attributes: Mapping[str, Attribute]) -> bytes:
    """Return a NodeProto."""
    found = [_bytes(1, name.encode()) for name in inputs]
    found += [_bytes(2, result.encode()), _bytes(3, result.encode()), _bytes(4, operator.encode())]
    found += [_bytes(5, _attribute(name, value)) for name, value in attributes.items()]
    return b"".join(found)


def _attribute(name: str, value: Attribute) -> bytes:
    """Return an AttributeProto."""
    start = _bytes(1, name.encode())
    if isinstance(value, int):
        return start + _int(3, value) + _int(20, 2)
    if isinstance(value, float):
        return start + _float(2, value) + _int(20, 1)
    if isinstance(value, str):
        return start + _bytes(4, value.encode()) + _int(20, 3)
    return start + b"".join(_int(8, item) for item in value) + _int(20, 7)
