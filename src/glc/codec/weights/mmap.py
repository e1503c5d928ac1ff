"""Memory-mapped tensors of a safetensors file.

Unused pages take no memory, and used pages can be dropped: the system reads them again. The mapping is
copy-on-write: writing to a tensor never changes the file.

While the tensors exist, the file must not be truncated or overwritten in place: the process would end with
SIGBUS. Replacing it by a rename (as all writes of glc do) and deleting it are safe.
"""

import json
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from glc.errors import WeightsError

CAN_MAP = sys.platform != "win32"
"""Whether files are mapped on this system. Windows does not allow replacing a mapped file."""

_FILE_BACKED, _SWAPPED, _PRESENT = (np.uint64(1 << bit) for bit in (61, 62, 63))
"""Bits of an entry in Linux's /proc/self/pagemap."""


class MappedFile:
    """A safetensors file; its float32 tensors are memory-mapped, others are copies.

    Raises:
        safetensors.SafetensorError: it is not a safetensors file.
        OSError: it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.tensors: dict[str, Tensor] = {}
        # safe_open checks the header. If the file is replaced in between, its fingerprint check fails.
        with open(path, "rb") as file, safe_open(path, framework="pt") as opened:
            self.metadata: dict[str, str] = opened.metadata() or {}
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._start = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
            self._stop = self._start + len(self._memory)
            first = 8 + int.from_bytes(self._memory[:8], "little")
            header = json.loads(self._memory[8:first])
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(name)  # not read yet
                offset = first + header[name]["data_offsets"][0]
                if tensor.dtype == torch.float32 and tensor.numel() and offset % tensor.itemsize == 0:
                    # One storage per tensor: saving or sharing a tensor must not include the complete file.
                    mapped = torch.frombuffer(
                        self._memory, dtype=torch.float32, count=tensor.numel(), offset=offset
                    )
                    self.tensors[name] = mapped.view(tensor.shape)
                else:
                    self.tensors[name] = tensor.clone()

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is memory-mapped from this file."""
        return self._start <= tensor.data_ptr() < self._stop

    def release(self) -> None:
        """Drop the pages that were read, where the system supports it and no tensor was written to.

        Concurrent reads are safe: they read the pages again. Concurrent writes are not.
        """
        if hasattr(mmap, "MADV_DONTNEED") and not self._written():
            with suppress(OSError):  # locked in memory, for example by mlockall
                self._memory.madvise(mmap.MADV_DONTNEED)

    def _written(self) -> bool:
        """Whether any mapped page is dirty (copy-on-write) or unknown; dropping it would lose writes."""
        first, last = self._start // mmap.PAGESIZE, -(-self._stop // mmap.PAGESIZE)
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as file:
                file.seek(8 * first)
                pages = np.frombuffer(file.read(8 * (last - first)), np.uint64)
        except OSError:
            return True
        if len(pages) != last - first:
            return True
        own = (pages & _FILE_BACKED) == 0
        return bool((own & ((pages & (_PRESENT | _SWAPPED)) != 0)).any())


@contextmanager
def opening(path: str | Path) -> Iterator[Any]:
    """Open a safetensors file for reading.

    Raises:
        WeightsError: it is missing, or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            yield opened
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from error


def open_tensors(
    path: str | Path, mapped: bool
) -> tuple[dict[str, str], dict[str, Tensor], tuple[MappedFile, ...]]:
    """Return the metadata and tensors of a safetensors file, and the mapped file if any tensor is mapped.

    Args:
        mapped: memory-map float32 tensors where `CAN_MAP`. Otherwise no file is returned, and the caller must
            copy the tensors.

    Raises:
        WeightsError: it is missing, or not a safetensors file.
    """
    with opening(path) as opened:
        if mapped and CAN_MAP:
            file = MappedFile(path)
            some = any(file.holds(tensor) for tensor in file.tensors.values())
            return file.metadata, file.tensors, (file,) if some else ()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return opened.metadata() or {}, tensors, ()


def bytes_to_read(network: nn.Module, files: tuple[MappedFile, ...]) -> int:
    """Return the bytes of a network's parameters that are memory-mapped."""
    parameters = network.parameters()
    return sum(p.nbytes for p in parameters if any(file.holds(p) for file in files))
