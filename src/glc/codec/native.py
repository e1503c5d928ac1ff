"""Load, or JIT-compile and cache, and self-test the optional C kernels.

Wheels may have them compiled (`glc.codec.prebuilt`); otherwise a C compiler compiles them where they run.
Without either, or with `GLC_NATIVE=0` in the environment, PyTorch or NumPy compute the same.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

from glc.codec.prebuilt import FLAGS, WIDE_VECTORS, libraries, processor_features
from glc.io.atomic import write_bytes

SWITCH = "GLC_NATIVE"
"""Environment variable: 0 disables the C kernels."""

_TIMEOUT_SECONDS = 60


class Native:
    """An optional shared library, compiled from one C file for this processor when it is first needed.

    Args:
        source: the C file. If the wheel has no library of it, it is compiled, in less than a second, and
            cached in `cache_folder()`.
        declare: declares the types of the library's functions; raises `AttributeError` if one is missing.
        self_test: returns whether a library's results are correct. Called at each load.
    """

    def __init__(
        self, source: Path, declare: Callable[[ctypes.CDLL], None], self_test: Callable[[ctypes.CDLL], bool]
    ) -> None:
        self.source = source
        self._declare, self._self_test = declare, self_test
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Look for the library again at the next call of `library`."""
        self._searched = False
        self._library: ctypes.CDLL | None = None

    def library(self) -> ctypes.CDLL | None:
        """Return the library, or None if it cannot be compiled or fails its self-test."""
        if not self._searched:
            with self._lock:  # one thread compiles, the others wait
                if not self._searched:
                    self._library = self._find()
                    self._searched = True
        return self._library

    def _find(self) -> ctypes.CDLL | None:
        if os.environ.get(SWITCH) == "0":
            return None
        for path in libraries(self.source):
            if (library := self._load(path)) is not None:
                return library
        try:
            compiler = shlex.split(os.environ.get("CC", "")) or [
                shutil.which("cc") or shutil.which("gcc") or ""
            ]
            return self._load_or_compile(compiler) if compiler[0] else None
        except (OSError, ValueError, subprocess.SubprocessError):
            return None

    def _load_or_compile(self, compiler: list[str]) -> ctypes.CDLL | None:
        # The name holds the processor, since machines may share the folder, and the SHA-256 of the library:
        # a process that loads a truncated or zeroed one dies of a bus error before any self-test.
        key = (self.source.read_bytes(), FLAGS, compiler, platform.machine(), _processor())
        stem = f"{self.source.stem}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
        folder = cache_folder()
        cached = sorted(folder.glob(f"{stem}-*.so"))
        for path in cached:
            if _is_complete(path, stem) and (library := self._load(path)) is not None:
                return library
        with tempfile.TemporaryDirectory(prefix="glc-") as temporary:
            compiled = self._compile(compiler, Path(temporary) / f"{stem}.so")
            data = compiled.read_bytes()
            target = folder / _name(stem, data)
            try:
                write_bytes(target, data, fsync=True)
                for path in cached:
                    if path != target:
                        path.unlink(missing_ok=True)
                # Not from the temporary folder, which may be mounted noexec.
                if (library := self._load(target)) is not None:
                    return library
                target.unlink(missing_ok=True)
            except OSError:
                pass
            # The cache is read-only or noexec. A loaded library stays mapped when its file is deleted.
            return self._load(compiled)

    def _compile(self, compiler: list[str], target: Path) -> Path:
        x86 = platform.machine() in ("x86_64", "AMD64")
        native = ("-march=native", WIDE_VECTORS) if x86 else ("-mcpu=native",)
        command = [*compiler, *FLAGS, *native, "-o", str(target), str(self.source)]
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_SECONDS)
        return target

    def _load(self, path: Path) -> ctypes.CDLL | None:
        """Return the library at a path, or None if it cannot be loaded or fails its self-test."""
        try:
            library = ctypes.CDLL(str(path))
            self._declare(library)
        except (OSError, AttributeError):
            return None
        return library if self._self_test(library) else None


@cache
def permits_amx() -> bool:
    """Whether the processor multiplies matrices of bytes and bfloat16 (AMX), and Linux permits it here.

    The first call asks for the permission, which holds for all threads of the process.
    """
    features = {"amx_tile", "amx_int8", "amx_bf16", "avx512_bf16"}
    if not sys.platform.startswith("linux") or not features <= processor_features():
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    try:
        return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0
    except (OSError, AttributeError):
        return False  # another C library


def cache_folder() -> Path:
    """Return the folder of compiled libraries: `glc` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "glc"


def _name(stem: str, library: bytes) -> str:
    """Return the cached file's name, which tells whether the content is complete."""
    return f"{stem}-{hashlib.sha256(library).hexdigest()[:32]}.so"


def _is_complete(path: Path, stem: str) -> bool:
    try:
        return path.name == _name(stem, path.read_bytes())
    except OSError:
        return False


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.node()  # no description of the processor: do not share between machines
    keys = ("model name", "flags", "CPU part", "Features")
    return "\n".join(line for line in text.split("\n\n")[0].splitlines() if line.startswith(keys))
