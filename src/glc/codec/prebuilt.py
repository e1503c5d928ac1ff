"""Compiled C kernels in wheels: the instructions that each was compiled for.

`hatch_build.py` runs this file on its own.
"""

import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FLAGS = ("-O3", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-ffp-contract=fast")
"""Options of the compiler for any processor."""
WIDE_VECTORS = "-mprefer-vector-width=512"
"""Option for x86: the loops of the kernels are long enough for the longest vectors."""


class Level(NamedTuple):
    """Instructions that a library needs."""

    name: str
    """In the library's name: `NAME.LEVEL.so` beside `NAME.c`."""
    flags: tuple[str, ...]
    """Options of the compiler."""
    features: frozenset[str]
    """Features that Linux must list for the processor; empty for those that all have."""
    sources: tuple[str, ...] = ("winograd", "integer_kernels", "fused")
    """Names of the C files that use them."""

    def compiles(self, source: str) -> bool:
        """Whether there is a library of a C file for this level."""
        return source in self.sources


_V3 = frozenset(("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"))
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_AMX = ("-mamx-tile", "-mamx-int8", "-mamx-bf16")
LEVELS: dict[str, dict[str, Level]] = {
    "x86_64": {
        level.name: level
        for level in (
            Level(
                "amx",
                ("-march=x86-64-v4", WIDE_VECTORS, "-mavx512vnni", "-mavx512bf16", *_AMX),
                _V4 | {"avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"},
                ("amx", "integer_kernels"),
            ),
            Level("vnni", ("-march=x86-64-v4", WIDE_VECTORS, "-mavx512vnni"), _V4 | {"avx512_vnni"}),
            Level("v4", ("-march=x86-64-v4", WIDE_VECTORS), _V4),
            Level("v3", ("-march=x86-64-v3",), _V3),
        )
    }
}
"""Levels of each architecture, the fastest first."""


def processor_features() -> frozenset[str]:
    """Return the features of an x86 processor as Linux lists them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def libraries(source: Path) -> Iterator[Path]:
    """Yield the libraries beside a C file that this processor can run, the fastest first."""
    if not sys.platform.startswith("linux"):
        return
    features = processor_features()
    for level in LEVELS.get(platform.machine(), {}).values():
        path = source.with_suffix(f".{level.name}.so")
        if level.features <= features and path.is_file():
            yield path
