"""A second decoder of `.glc` files, written from the text of `docs/bitstream.md` alone.

It and its modules share no code with `glc` and need neither torch nor an entropy coding library: where both
agree, the document is sufficient. Everything up to `y_hat` is integer arithmetic. It is written for clarity,
not speed.
"""

import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from tests.codec.reference_networks import Networks
from tests.codec.reference_weights import TOTAL, Ints, Table, Weights

ORDER = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))


class Refused(ValueError):
    """What the document calls a failed check, under the name of the error that `glc` raises."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name


# Part 2: the file.


@dataclass(frozen=True)
class File:
    """Header fields and payload of a file."""

    fingerprint: bytes
    width: int
    height: int
    rate_index: int
    payload: bytes


def parse(data: bytes, max_pixels: int = 16384 * 16384) -> File:
    """Return the header fields and payload of a file, after checks 1 to 6."""
    if not data or data[:3] != b"GLC"[: len(data)]:
        raise Refused("NotGlcError", "no magic")
    if len(data) > 3 and data[3] != 1:
        raise Refused("NewerVersionError" if data[3] else "CorruptFileError", "no such version")
    if len(data) < 18:
        raise Refused("TruncatedError", "no room for a header and a checksum")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise Refused("CorruptFileError", "checksum")
    fingerprint, width, height, rate_index = struct.unpack_from("<4sHHH", data, 4)
    width, height, payload = width + 1, height + 1, data[14:-4]
    if width * height > max_pixels:
        raise Refused("SizeLimitError", "too many pixels")
    if payload.endswith(b"\0"):
        raise Refused("CorruptFileError", "the payload ends in a zero byte")
    return File(fingerprint, width, height, rate_index, payload)


# Part 5: the entropy coder.


class Stack:
    """The stack of 32-bit words with its 64-bit state."""

    def __init__(self, payload: bytes) -> None:
        payload += bytes(-len(payload) % 4)
        self.words = [word for (word,) in struct.iter_unpack("<I", payload)]
        self.x = 0
        while self.words and self.x < 1 << 32:
            self.x = self.x << 32 | self.words.pop()

    def _take(self, start: int, frequency: int) -> None:
        self.x = (self.x >> 24) * frequency + self.x % TOTAL - start
        if self.words and self.x < 1 << 32:
            self.x = self.x << 32 | self.words.pop()

    def position(self, table: Table) -> int:
        """Return the next position in a table."""
        found = bisect_right(table.starts, self.x % TOTAL) - 1
        self._take(table.starts[found], table.starts[found + 1] - table.starts[found])
        return found

    def uniform(self, n: int) -> int:
        """Return the next of n equally likely values."""
        if n == 1:
            return 0
        width = TOTAL // n
        value = min(self.x % TOTAL // width, n - 1)
        self._take(value * width, width if value < n - 1 else TOTAL - value * width)
        return value

    def finish(self) -> None:
        """Check 10: the payload must be used up."""
        if self.x or self.words:
            raise Refused("CorruptFileError", "data after the payload")


def decode_indices(stack: Stack, shape: tuple[int, ...], size: int, tables: list[Table]) -> Ints:
    """Return a run of indices below `size` (part 5.3)."""
    count = int(np.prod(shape))
    found = [stack.position(tables[0]) if tables else stack.uniform(size) for _ in range(count)]
    return np.array(found, np.int64).reshape(shape)


def decode_integers(stack: Stack, classes: Ints, tables: list[Table]) -> Ints:
    """Return a run of integers, one for each of the classes `[n]` (part 5.3)."""
    order = np.argsort(classes, kind="stable")
    sorted_tables = [tables[k] for k in classes[order]]
    positions = [stack.position(table) for table in sorted_tables]
    values = [table.low + position for table, position in zip(sorted_tables, positions, strict=True)]

    escaped = [i for i, position in enumerate(positions) if position == sorted_tables[i].escape]
    signs = [stack.uniform(2) for _ in escaped]
    lengths = [stack.uniform(16) + 1 for _ in escaped]
    rests = dict.fromkeys(range(len(escaped)), 0)
    for length in range(2, 17):
        members = [k for k, found in enumerate(lengths) if found == length]
        lower = min(length - 1, 12)
        for bits, shift in ((length - 1 - lower, lower), (lower, 0)):
            for k in members:
                rests[k] += stack.uniform(1 << bits) << shift

    for k, i in enumerate(escaped):
        excess = (1 << lengths[k] - 1) + rests[k]
        values[i] = sorted_tables[i].low - excess if signs[k] else sorted_tables[i].high + excess
        if abs(values[i]) > 32767:
            raise Refused("CorruptFileError", "a symbol out of range")

    found = np.empty(len(order), np.int64)
    found[order] = values
    return found


# Parts 4 and 7: the walk through y.


def mask(step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return which elements of `[N, h, w]` a step codes."""
    channel, row, col = np.indices(shape)
    group = channel // (shape[0] // 4)
    return np.array(ORDER[step])[group] == 2 * (row % 2) + col % 2


def decode_y(stack: Stack, weights: Weights, prior: Ints, rho: Ints) -> tuple[Ints, Ints]:
    """Return y and y_hat, the latter in units of 2^-24."""
    networks = Networks(weights)
    step_size, scale, mean = np.split(prior, 3)
    step_size = np.maximum(step_size, 2048)
    reduced = networks.conv("coder.context.reduction", prior)
    thresholds = np.array(weights.tables["thresholds"], np.int64)
    rho = np.broadcast_to(rho, mean.shape)
    y, known = np.zeros_like(mean), np.zeros_like(mean)
    for step in range(4):
        if step:
            scale, mean = networks.context(step, known, reduced)
        now = mask(step, y.shape)
        classes = (thresholds * rho[now, None] <= scale[now, None] << 12).sum(1)
        y[now] = decode_integers(stack, classes, weights.y_tables)
        known[now] = y[now] * rho[now] + mean[now]
    return y, known * step_size


# All together.


@dataclass(frozen=True)
class Decoded:
    """The integers in a file. Indices-map coding has neither z nor y_hat."""

    z: Ints | None
    y: Ints
    y_hat: Ints | None


def decode(data: bytes, weights: Weights, max_pixels: int = 16384 * 16384) -> Decoded:
    """Return the integers in a file, after all checks of part 2."""
    file = parse(data, max_pixels)
    if file.fingerprint != bytes.fromhex(weights.fingerprint)[:4]:
        raise Refused("WrongWeightsError", "other weights")
    if file.rate_index > (weights.num_rates - 1) * 4096 or (weights.maps_indices and file.rate_index % 4096):
        raise Refused("CorruptFileError", "no such rate point")
    pixels = weights.pixels
    stride = pixels if weights.maps_indices else 4 * pixels
    h, w = (-(-side // stride) * stride // pixels for side in (file.height, file.width))
    stack = Stack(file.payload)

    if weights.maps_indices:
        size = weights.coder["sizes"][file.rate_index // 4096]
        found = Decoded(None, decode_indices(stack, (h, w), size, []), None)
    else:
        z = decode_z(stack, weights, h // 4, w // 4, file.rate_index)
        networks = Networks(weights)
        rho = networks.gate(z, file.rate_index) if weights.coder.get("gate") else np.array(4096)
        found = Decoded(z, *decode_y(stack, weights, networks.prior(z), rho))
    stack.finish()
    return found


def decode_z(stack: Stack, weights: Weights, h: int, w: int, rate_index: int) -> Ints:
    """Return z: indices `[h, w]` or integers `[N, h, w]`."""
    hyper = weights.coder["hyper"]
    if weights.factorized:
        channels = weights.coder["context"]["channels"]
        classes = np.repeat(np.arange(channels), h * w)
        return decode_integers(stack, classes, weights.z_tables).reshape(-1, h, w)
    if hyper.get("projected"):
        raise ValueError("projected codebooks are not part of the format")
    tables = weights.z_tables
    if weights.z_rate_tables and stack.uniform(2) == 0:
        tables = [weights.z_rate_tables[(rate_index + 2048) // 4096]]
    return decode_indices(stack, (h, w), hyper["codebook_size"], tables)
