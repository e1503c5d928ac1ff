"""Number formats of E and D."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # commands that only name a precision need not wait for it

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
        device: where the networks run.

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
