"""The tensors of a safetensors file whose memory is the file itself.

What is not touched takes no memory, and what was touched can be given back: the system reads it again. What
is written to such a tensor is this process's own; the file never changes.

While the tensors live, the file must not be cut off or written over in place: the process would end with
SIGBUS. Renaming another file over it, as all that glc writes is put in place, is safe, and so is deleting it.
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
"""Whether files are mapped here. Windows would not let another file take the place of one that is."""

_FILE_BACKED, _SWAPPED, _PRESENT = (np.uint64(1 << bit) for bit in (61, 62, 63))
"""What Linux says of a page in /proc/self/pagemap."""


class MappedFile:
    """A safetensors file; its tensors share its memory where they are float32, others are copies.

    Args:
        path: the file.

    Raises:
        safetensors.SafetensorError: when it is no such file.
        OSError: when it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.tensors: dict[str, Tensor] = {}
        # Its header is checked. Should it be replaced just now, what is mapped will fail the file's checksum.
        with open(path, "rb") as file, safe_open(path, framework="pt") as opened:
            self.metadata: dict[str, str] = opened.metadata() or {}
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._start = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
            self._stop = self._start + len(self._memory)
            first = 8 + int.from_bytes(self._memory[:8], "little")
            header = json.loads(self._memory[8:first])
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(name)  # not read yet
                place = first + header[name]["data_offsets"][0]
                if tensor.dtype == torch.float32 and tensor.numel() and place % tensor.itemsize == 0:
                    # A storage for each: what is saved or shared of one of them is not the whole file.
                    mapped = torch.frombuffer(
                        self._memory, dtype=torch.float32, count=tensor.numel(), offset=place
                    )
                    self.tensors[name] = mapped.view(tensor.shape)
                else:
                    self.tensors[name] = tensor.clone()

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor's memory is the file's."""
        return self._start <= tensor.data_ptr() < self._stop

    def release(self) -> None:
        """Give back the memory of what was read, where the system can and nothing was written to a tensor.

        Anything that uses a tensor meanwhile reads the same again; only writing must wait.
        """
        if hasattr(mmap, "MADV_DONTNEED") and not self._written():
            with suppress(OSError):  # locked in memory, such as by mlockall
                self._memory.madvise(mmap.MADV_DONTNEED)

    def _written(self) -> bool:
        """Whether a page is this process's own by now, or might be: giving it back would undo the writing."""
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
    """Open a safetensors file to read from.

    Raises:
        WeightsError: when it is missing or no such file.
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
    """Return the metadata and the tensors of a safetensors file, and the file where they are its memory.

    Args:
        path: the file.
        mapped: leave float32 tensors where they are, on systems where that is not in the way. Otherwise no
            file is returned, and the tensors are to be copied.

    Raises:
        WeightsError: when it is missing or no such file.
    """
    with opening(path) as opened:
        if mapped and CAN_MAP:
            file = MappedFile(path)
            some = any(file.holds(tensor) for tensor in file.tensors.values())
            return file.metadata, file.tensors, (file,) if some else ()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return opened.metadata() or {}, tensors, ()


def bytes_to_read(network: nn.Module, files: tuple[MappedFile, ...]) -> int:
    """Return the bytes that using a network may yet read from mapped files."""
    parameters = network.parameters()
    return sum(p.nbytes for p in parameters if any(file.holds(p) for file in files))
