"""The page that decodes files in a browser: a folder of static files for any web server."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.numpy import save

from glc.codec.onnx.graph import Stored
from glc.codec.onnx.runtime import make_graphs
from glc.codec.onnx.weights import read_arrays
from glc.codec.weights.catalog import find
from glc.codec.weights.labels import ENCODER_SIDE

SOURCE = Path(__file__).parent / "web"
"""The page's own files."""
RUNTIME = SOURCE / "vendor"
"""ONNX Runtime Web: `make web` fetches it, and a wheel built after that contains it."""
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
_WEIGHTS = "weights"
"""The weights file's name in the graphs; image.js gives its bytes under this name."""


def has_runtime() -> bool:
    """Whether ONNX Runtime Web is there, without which the page shows no image."""
    return all((RUNTIME / name).is_file() for name in RUNTIME_FILES)


def write_page(folder: Path, models: Sequence[str | Path]) -> list[str]:
    """Write the page to a folder, which is created; existing files are replaced.

    The weights are those of the decoder, without E, g_a and h_a; the graphs refer to them.

    Args:
        models: names or weights files; the page loads the first one when it opens.

    Returns:
        The models' names.

    Raises:
        WeightsError: a model is missing, or cannot be decoded in a browser.
        FileNotFoundError: ONNX Runtime Web is missing.
    """
    if not has_runtime():
        raise FileNotFoundError(
            2, "ONNX Runtime Web is missing; `make web` in a checkout fetches it", str(RUNTIME)
        )
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    entries = [_write_model(folder / "models", find(model)) for model in models]
    (folder / "models" / "index.json").write_text(json.dumps(entries, indent=2) + "\n", "utf-8")
    return [entry["name"] for entry in entries]


def _write_model(folder: Path, path: Path) -> dict[str, Any]:
    weights = read_arrays(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    tensors = {name: t for name, t in weights.tensors.items() if not name.startswith(ENCODER_SIDE)}
    data = save(tensors, metadata)
    places = _places(data)
    graphs = {
        name: graph.serialize((_WEIGHTS, places))
        for name, graph in make_graphs(weights).items()
        if name in ("synthesis", "decoder")
    }
    (folder / f"{path.stem}.safetensors").write_bytes(data)
    for name, graph in graphs.items():
        (folder / f"{path.stem}.{name}.onnx").write_bytes(graph)
    return {
        "name": path.stem,
        "fingerprint": weights.fingerprint,
        "weights": f"{path.stem}.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "graphs": {name: f"{path.stem}.{name}.onnx" for name in graphs},
    }


def _places(data: bytes) -> dict[str, Stored]:
    """Return where a safetensors file holds each tensor."""
    end = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:end])
    entries.pop("__metadata__", None)
    return {
        name: Stored(
            entry["dtype"],
            end + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in entries.items()
    }
