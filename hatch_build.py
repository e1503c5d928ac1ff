"""Build hook: with GLC_BUILD_KERNELS=1, compile the C kernels into the wheel, which is then a platform's own.

Without it the wheel has the C files only, and glc compiles them where it runs (`glc.codec.native`).
cibuildwheel sets the variable (pyproject.toml).
"""

import os
import platform
import runpy
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "GLC_BUILD_KERNELS"
SOURCES = (
    "src/glc/codec/runtime/amx.c",
    "src/glc/codec/runtime/winograd.c",
    "src/glc/codec/entropy/integer_kernels.c",
    "src/glc/codec/runtime/fused.c",
)


class KernelsHook(BuildHookInterface):
    """Adds `NAME.LEVEL.so` beside `NAME.c` for each level of this architecture that the compiler supports."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernels."""
        if version == "editable" or os.environ.get(SWITCH) != "1":
            return
        root = Path(self.root)
        prebuilt = runpy.run_path(str(root / "src/glc/codec/prebuilt.py"))
        levels = prebuilt["LEVELS"].get(platform.machine(), {})
        self.folder = tempfile.TemporaryDirectory()
        for source in SOURCES:
            for level in levels.values():
                if not level.compiles(Path(source).stem):
                    continue
                name = Path(source).with_suffix(f".{level.name}.so")
                target = Path(self.folder.name, name.name)
                command = [*shlex.split(os.environ.get("CC", "cc")), *prebuilt["FLAGS"], *level.flags]
                subprocess.run([*command, "-o", str(target), str(root / source)], check=True)
                build_data["force_include"][str(target)] = str(name.relative_to("src"))
        if not levels:
            raise SystemExit(f"{SWITCH}=1: there are no C kernels for {platform.machine()}")
        build_data["pure_python"] = False
        # The libraries do not use Python's C interface: one wheel serves all versions of Python.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete the compiled files."""
        if hasattr(self, "folder"):
            self.folder.cleanup()
