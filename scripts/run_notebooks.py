"""Run the notebooks from top to bottom, without saving their output.

    python scripts/run_notebooks.py [NOTEBOOK...]

The model is the one in the environment variable GLC_NOTEBOOK_MODEL, else the default model. If GLC_MODELS is
not set, the model's own encoder and decoder replace those of applications, so that the cells run; their
results are then meaningless. Prints the seconds of each notebook; exit code 1 if a cell fails.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from glc.codec.weights.catalog import DEFAULT_MODEL, FOLDER_VARIABLE, find
from glc.codec.weights.file import read_weights
from glc.codec.weights.labels import Kind
from glc.codec.weights.variants import save_variant

ROOT = Path(__file__).resolve().parent.parent
MODEL = "GLC_NOTEBOOK_MODEL"
LIMIT = 300
"""Time limit of a cell, in seconds."""


def make_parts(model: str, folder: Path) -> None:
    """Write a model's own encoder and decoder into the folder as variants for the notebooks."""
    weights = read_weights(find(model))
    kinds: tuple[tuple[str, Kind], ...] = (
        ("denoise", "encoder"),
        ("inpaint", "encoder"),
        ("style", "decoder"),
    )
    for name, kind in kinds:
        state = getattr(weights.model, kind).state_dict()
        part = folder / f"own-{name}.{kind}.safetensors"
        save_variant(part, kind, state, weights.description[kind], weights.fingerprint)


def run(path: Path, folder: Path) -> str | None:
    """Run a notebook, with its sockets in a folder; return the error, or None."""
    notebook = nbformat.read(path, as_version=4)
    manager = AsyncKernelManager(kernel_name="python3")
    if os.name == "posix":
        # Sockets in a private folder: no other user can connect to the kernel.
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
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    arguments = parser.parse_args()
    paths = arguments.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    os.environ["MPLBACKEND"] = "agg"
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        if FOLDER_VARIABLE not in os.environ:
            make_parts(os.environ.get(MODEL, DEFAULT_MODEL), Path(folder))
            os.environ[FOLDER_VARIABLE] = folder
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
