"""What a machine offers to E and D: memory limits and number formats."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glc.errors import MemoryLimitError

if TYPE_CHECKING:
    import torch  # commands that only name a precision need not wait for it


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_memory(need: int, limit: int | None, name: str) -> None:
    """Check that a computation fits a memory limit.

    Args:
        need: bytes of the computation.
        limit: bytes that may be used; None for no limit.

    Raises:
        MemoryLimitError: when it needs more than the limit.
    """
    if limit is not None and need > limit:
        raise MemoryLimitError(
            f"{name} needs {need / 1e9:.1f} GB for an image of this size, and {limit / 1e9:.1f} GB may be "
            "used; raise --memory (memory= in Python)"
        )


def parse_memory(text: str) -> int:
    """Parse a size such as `8GB`, `500 MB` or `1.5g`, and return its bytes.

    Raises:
        ValueError: for another text, or a size of zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if match is None or not float(match[1]):
        raise ValueError(f"memory must be a size such as 8GB or 500MB, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def available_memory() -> int | None:
    """Return the bytes that this process may still allocate, or None if the system does not report them."""
    found = [int(text) for name in _CGROUP_LIMITS if (text := _read(name).strip()).isdecimal()]
    limits = [limit - resident_memory() for limit in found]
    match = re.search(r"MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"))
    if match is not None:
        limits.append(int(match[1]) * 1024)
    return max(0, min(limits)) if limits else None


def resident_memory() -> int:
    """Return the resident bytes of this process; 0 if the system does not report them."""
    fields = _read("/proc/self/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def give_back_freed() -> None:
    """Return freed memory to the system, with glibc."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None  # another C library


def _read(name: str) -> str:
    try:
        return Path(name).read_text()
    except OSError:
        return ""


PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Precision:
    """Number formats of E and D; g_a, g_s and the hyper-analysis always run in float32.

    An error of E near a rounding threshold changes an integer in the file, permanently. An error of D affects
    one reconstruction only.
    """

    encoder: torch.dtype
    decoder: torch.dtype


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the number formats of a name.

    Args:
        name: "float32", "bfloat16", or "auto": E in float32, and D in bfloat16 if that is faster: on GPUs
            with bfloat16 units, and on processors with them (AVX-512 BF16, AMX or Arm BF16) if the float32
            convolutions of `glc.codec.runtime.winograd` are not available.

    Raises:
        ValueError: for an unknown name.
    """
    import torch

    from glc.codec.runtime.winograd import library

    if name not in PRECISIONS:
        raise ValueError(f"precision must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, got {name!r}")
    if name != "auto":
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        return Precision(dtype, dtype)
    fast = multiplies_bfloat16(device) and (device.type != "cpu" or library() is None)
    return Precision(torch.float32, torch.bfloat16 if fast else torch.float32)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has bfloat16 multiplication units, by its description rather than by timing."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
