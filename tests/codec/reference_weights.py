"""Parts 3 and 8 of `docs/bitstream.md`, written from its text alone: the weights file and its fingerprint."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

Ints = np.ndarray
"""Of int64."""

TOTAL = 1 << 24
ENCODER_PARTS = ("encoder.", "coder.analysis.", "coder.hyper.analysis.")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "BOOL": "bool"}


class Table:
    """Integers from `low` on and, last where there is one, the escape, with their frequencies."""

    def __init__(self, low: int, frequencies: list[int]) -> None:
        if min(frequencies) <= 0 or sum(frequencies) != TOTAL:
            raise ValueError("bad table")
        self.low = low
        self.starts = [0, *accumulate(frequencies)]
        self.escape = len(frequencies) - 1
        self.high = low + self.escape - 1


@dataclass(frozen=True)
class Weights:
    """A weights file: its two JSON texts, and the dtype, shape and bytes of each tensor."""

    model: dict[str, Any]
    tables: dict[str, list]
    tensors: dict[str, tuple[str, list[int], bytes]]
    metadata: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "Weights":
        raw = path.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        entries = json.loads(raw[8:end])
        metadata = entries.pop("__metadata__")
        tensors = {}
        for name, entry in entries.items():
            first, last = entry["data_offsets"]
            tensors[name] = (entry["dtype"], entry["shape"], raw[end + first : end + last])
        weights = cls(json.loads(metadata["model"]), json.loads(metadata["tables"]), tensors, metadata)
        if metadata["format"] not in ("1", "2") or metadata["fingerprint"] != weights.fingerprint:
            raise ValueError("not weights of format 1 or 2, or damaged")
        return weights

    @cached_property
    def fingerprint(self) -> str:
        model = {key: value for key, value in self.model.items() if key != "encoder"}
        return self._digest(json_text([model, self.tables]), of_encoder=False)

    @cached_property
    def encoder_fingerprint(self) -> str:
        return self._digest(b"", of_encoder=True)

    def _digest(self, start: bytes, of_encoder: bool) -> str:
        digest = hashlib.sha256(start)
        for name, (dtype, shape, raw) in sorted(self.tensors.items()):
            if name.startswith(ENCODER_PARTS) == of_encoder:
                digest.update(json_text([name, f"torch.{DTYPES[dtype]}", shape]) + raw)
        return digest.hexdigest()

    def real(self, name: str) -> np.ndarray:
        """Return a tensor as float64, of values that float32 holds too."""
        dtype, shape, raw = self.tensors[name]
        if dtype == "BF16":
            values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[dtype])
        return values.astype(np.float64).reshape(shape)

    def scaled(self, name: str, bits: int) -> Ints:
        """Return round(tensor * 2^bits)."""
        return np.rint(np.ldexp(self.real(name), bits)).astype(np.int64)

    @property
    def coder(self) -> dict[str, Any]:
        return self.model["coder"]

    @property
    def maps_indices(self) -> bool:
        return self.coder["_target_"].endswith(".IndicesMapCoder")

    @property
    def factorized(self) -> bool:
        """Whether z is integers, not indices."""
        return self.coder["hyper"]["_target_"].endswith(".FactorizedHyperprior")

    @property
    def num_rates(self) -> int:
        return len(self.coder["sizes"]) if self.maps_indices else self.coder.get("num_rates", 4)

    @property
    def pixels(self) -> int:
        """Pixels per latent position: f."""
        decoder = self.model["decoder"]
        return decoder.get("stem", 1) << (len(decoder.get("multipliers", [1, 1, 2, 2, 4])) - 1)

    @cached_property
    def y_tables(self) -> list[Table]:
        return [Table(1 - len(f), f[:0:-1] + f + [e]) for *f, e in self.tables["y"]]

    @cached_property
    def z_tables(self) -> list[Table]:
        return [Table(low, frequencies) for low, *frequencies in self.tables["z"]]

    @cached_property
    def z_rate_tables(self) -> list[Table]:
        return [Table(low, frequencies) for low, *frequencies in self.tables.get("z_rates", [])]


def json_text(value: object) -> bytes:
    """Return the JSON text that part 8 hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
