"""Memory limits: parse, measure and check them."""

import ctypes
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from glc.errors import MemoryLimitError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_memory(need: int, limit: int | None, name: str) -> None:
    """Check that a computation fits a memory limit.

    Args:
        need: bytes of the computation.
        limit: bytes that may be used; None for no limit.
        name: of the computation, for the message.

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
