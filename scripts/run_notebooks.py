"""Run the notebooks from top to bottom; nothing of what they show is written.

    python scripts/run_notebooks.py [NOTEBOOK...]

They take the model that the environment variable GLC_NOTEBOOK_MODEL names, else the default model where it
comes with glc, else one with random weights made here, with an encoder and a decoder for it: that shows
that the cells run, not what the codec can do. Prints seconds for each; exits with 1 when a cell fails.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from glc.codec.catalog import DEFAULT_MODEL, FOLDER_VARIABLE, catalog
from glc.codec.parts import save_part
from glc.codec.weights import read_weights

ROOT = Path(__file__).resolve().parent.parent
MODEL = "GLC_NOTEBOOK_MODEL"
LIMIT = 300
"""Seconds that a cell may take."""


def make_models(folder: Path) -> Path:
    """Write a tiny codec with random weights and an encoder and a decoder for it; return its file."""
    codec = folder / "random.safetensors"
    words = [sys.executable, str(ROOT / "scripts" / "random_weights.py"), "tiny", str(codec)]
    subprocess.run(words, check=True)
    weights = read_weights(codec)
    for kind, name in (("encoder", "random-denoise"), ("decoder", "random-style")):
        state = getattr(weights.model, kind).state_dict()
        part = folder / f"{name}.{kind}.safetensors"
        save_part(part, kind, state, weights.description[kind], weights.fingerprint)  # type: ignore[arg-type]
    return codec


def run(path: Path, folder: Path) -> str | None:
    """Run a notebook, with its sockets in a folder; return what went wrong, or None."""
    notebook = nbformat.read(path, as_version=4)
    manager = AsyncKernelManager(kernel_name="python3")
    if os.name == "posix":
        # Nobody but this process should be able to talk to the kernel.
        manager.transport, manager.ip = "ipc", str(folder / path.stem)
    client = NotebookClient(notebook, km=manager, timeout=LIMIT)
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return str(error)
    return None


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of notebooks/ by default")
    arguments = parser.parse_args()
    paths = arguments.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    os.environ["MPLBACKEND"] = "agg"
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        if MODEL not in os.environ and DEFAULT_MODEL not in catalog():
            os.environ[FOLDER_VARIABLE] = folder
            os.environ[MODEL] = str(make_models(Path(folder)))
        for path in paths:
            start = time.monotonic()
            problem = run(path, Path(folder))
            print(f"{path.name}: {time.monotonic() - start:.1f} s{' FAILED' if problem else ''}", flush=True)
            if problem:
                failed = True
                print(problem, file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
