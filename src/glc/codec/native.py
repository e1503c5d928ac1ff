"""What is written in C: compiled for this processor when first needed, kept, checked whenever it is loaded.

Without a compiler, or with `GLC_NATIVE=0` in the environment, PyTorch computes the same.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from glc.io.atomic import replacing

SWITCH = "GLC_NATIVE"
"""Environment variable: 0 to do without what is compiled."""

_FLAGS = ("-O3", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-ffp-contract=fast")
_SECONDS = 60


class Native:
    """A C file, as a library or as nothing.

    Args:
        source: the file. It is compiled in less than a second; what is made of it is kept in PyTorch's folder
            of downloads (`torch.hub.get_dir()`).
        declare: tells the types of its functions; raises `AttributeError` where one is missing.
        computes: whether a library computes what it should. Called whenever one is loaded, on the CPU, with
            PyTorch's defaults.
    """

    def __init__(
        self,
        source: Path,
        declare: Callable[[ctypes.CDLL], None],
        computes: Callable[[ctypes.CDLL], bool],
    ) -> None:
        self.source = source
        self._declare, self._computes = declare, computes
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Ask again when the library is next needed."""
        self._asked = False
        self._library: ctypes.CDLL | None = None

    def library(self) -> ctypes.CDLL | None:
        """Return the library, or None where it cannot be had or computes something else."""
        if not self._asked:
            with self._lock:  # one thread compiles, the others wait
                if not self._asked:
                    self._library = self._find()
                    self._asked = True
        return self._library

    def _find(self) -> ctypes.CDLL | None:
        if os.environ.get(SWITCH) == "0":
            return None
        try:
            compiler = shlex.split(os.environ.get("CC", "")) or [
                shutil.which("cc") or shutil.which("gcc") or ""
            ]
            return self._built(compiler) if compiler[0] else None
        except (OSError, ValueError, subprocess.SubprocessError):
            return None

    def _built(self, compiler: list[str]) -> ctypes.CDLL | None:
        # For this very processor: a folder may be shared by machines.
        told = (self.source.read_bytes(), _FLAGS, compiler, platform.machine(), _processor())
        name = f"{self.source.stem}-{hashlib.sha256(repr(told).encode()).hexdigest()[:16]}.so"
        folder = Path(torch.hub.get_dir()) / "glc"
        target = folder / name
        if target.is_file() and (made := self._checked(target)) is not None:
            return made
        try:
            with replacing(target) as partial:
                made = self._checked(self._compiled(compiler, partial))
                if made is None:
                    raise OSError(f"{folder}: what is compiled here cannot be used")
            return made
        except OSError:
            pass
        # A folder that nothing may be written to or run from. What is loaded stays when its file is gone.
        with tempfile.TemporaryDirectory(prefix="glc-") as place:
            return self._checked(self._compiled(compiler, Path(place) / name))

    def _compiled(self, compiler: list[str], made: Path) -> Path:
        native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
        command = [*compiler, *_FLAGS, native, "-o", str(made), str(self.source)]
        subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
        return made

    def _checked(self, path: Path) -> ctypes.CDLL | None:
        """Return a library that computes what it should, or None."""
        try:
            made = ctypes.CDLL(str(path))
            self._declare(made)
        except (OSError, AttributeError):
            return None
        with torch.inference_mode(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
            return made if self._computes(made) else None


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    """Return where a tensor's values lie; no place where there is none."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.node()  # nothing tells processors apart: not shared
    told = ("model name", "flags", "CPU part", "Features")
    return "\n".join(line for line in text.split("\n\n")[0].splitlines() if line.startswith(told))
