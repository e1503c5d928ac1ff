"""How much memory the networks may take."""

import ctypes
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from glc.errors import MemoryLimitError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_memory(need: int, limit: int | None, what: str) -> None:
    """Check that something may be computed.

    Args:
        need: bytes that it takes.
        limit: bytes that may be used; None where nothing says.
        what: what to call it in the message.

    Raises:
        MemoryLimitError: when the limit is less.
    """
    if limit is not None and need > limit:
        raise MemoryLimitError(
            f"{what} needs {need / 1e9:.1f} GB for an image of this size, and {limit / 1e9:.1f} GB may be "
            "used: allow more with --memory (memory= in Python)"
        )


def parse_memory(text: str) -> int:
    """Return the bytes that a text such as `8GB`, `500 MB` or `1.5g` names.

    Raises:
        ValueError: when it names none, or none at all.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if match is None or not float(match[1]):
        raise ValueError(f"memory must be a size such as 8GB or 500MB, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def available_memory() -> int | None:
    """Return the bytes that this process may still take on this machine, or None where that is not told."""
    found = [int(text) for name in _GROUPS if (text := _read(name).strip()).isdecimal()]
    limits = [limit - resident_memory() for limit in found]
    match = re.search(r"MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"))
    if match is not None:
        limits.append(int(match[1]) * 1024)
    return max(0, min(limits)) if limits else None


def resident_memory() -> int:
    """Return the bytes that this process holds now; 0 where that is not told."""
    fields = _read("/proc/self/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def give_back_freed() -> None:
    """Give memory that was freed back to the system, where the C library keeps it and can (glibc)."""
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
