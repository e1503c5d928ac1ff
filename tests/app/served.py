"""`glc serve` in a process of its own, for tests."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = Path(os.environ.get("GLC_APP_PATH", ROOT / "build" / "app"))
MODEL = "mine"
UPLOAD = "/gradio_api/upload"


@dataclass(frozen=True)
class Served:
    """A running server."""

    folder: Path
    port: int
    log: Path

    def uploads(self) -> Path:
        """The folder of the server's uploads."""
        (found,) = (self.folder / "tmp").glob("glc-page-*")
        return found

    def stored(self) -> set[Path]:
        """Files that the server has stored."""
        return {file for file in (self.folder / "tmp").rglob("*") if file.is_file()}


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """Serve the models of a folder until the end of the block; skip the test without gradio."""
    if importlib.util.find_spec("gradio") is None and not (PACKAGES / "gradio").is_dir():
        pytest.skip("gradio is not installed: run `make app`, or set GLC_APP_PATH to its folder")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "tmp").mkdir()
    environment = {
        **os.environ,
        "GLC_MODELS": str(folder),
        "TORCH_HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGES), environment.get("PYTHONPATH", "")])
    words = ["serve", "--port", str(port), "--model", MODEL, "--max-pixels", "1000000", "--device", "cpu"]
    words += ["--max-upload-mb", "1"]
    log = folder / "log.txt"
    with log.open("w") as file:
        command = [sys.executable, "-m", "glc", *words]
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        end = time.monotonic() + 120
        while "Ctrl-C stops" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, "the page did not start within 120 s"
            time.sleep(0.2)
        yield Served(folder, port, log)
    finally:
        server.terminate()
        server.wait(30)
