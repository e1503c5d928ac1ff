"""Export E, g_a, g_s and D as self-contained ONNX files for other runtimes, compared with PyTorch."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glc.codec.load import has_torch
from glc.codec.onnx import networks
from glc.codec.onnx.graph import OPSET
from glc.codec.onnx.latent_coding import ArrayTransformCodec
from glc.codec.onnx.runtime import make_graphs
from glc.codec.onnx.weights import ArrayWeights, read_arrays
from glc.codec.weights.catalog import find
from glc.errors import ArchitectureError, WeightsError
from glc.io.atomic import write_bytes

LEAST_DECIBELS = 60
"""PSNR of each graph against PyTorch below which nothing is written."""
_SIZE = (5, 9)
"""Size of the compared image in strides: windows of attention are cut off at its edges."""


class Exported(NamedTuple):
    """A file that was written."""

    path: Path
    bytes: int
    largest: float | None
    """Largest absolute difference from PyTorch; None if PyTorch is not installed."""
    decibels: float | None
    """PSNR against PyTorch, relative to the range of its output."""


def export_onnx(source: str | Path, folder: Path, force: bool = False) -> list[Exported]:
    """Write the graphs of a codec to a folder, with `glc.json`, which describes them.

    `encoder.onnx` (E), `analysis.onnx` (g_a, h_a and the search in C_h), `synthesis.onnx` (g_s) and
    `decoder.onnx` (D); an indices-map codec has the first and the last. Batch, height and width are free.

    Args:
        source: a weights file, a model's name, a checkpoint or the folder of its run.
        force: replace existing files.

    Raises:
        WeightsError: there is no such codec, or it has other networks than those of glc.
        FileExistsError: a file exists.
        ValueError: a graph differs from PyTorch's networks.
    """
    weights = _read(source)
    graphs = make_graphs(weights)
    names = list(graphs)
    paths = {name: folder / f"{name}.onnx" for name in names}
    for path in (*paths.values(), folder / "glc.json"):
        if path.exists() and not force:
            raise FileExistsError(17, "exists; replace it with --force", str(path))
    models = {name: graph.serialize() for name, graph in graphs.items()}
    differences = compare(weights, models) if has_torch() else {}
    for name, (_, decibels) in differences.items():
        if decibels < LEAST_DECIBELS:
            raise ValueError(f"{weights.source}: the {name} graph differs from PyTorch ({decibels:.1f} dB)")
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for name, path in paths.items():
        write_bytes(path, models[name], overwrite=force)
        done.append(Exported(path, len(models[name]), *differences.get(name, (None, None))))
    text = json.dumps(_about(weights, names), indent=2) + "\n"
    write_bytes(folder / "glc.json", text.encode(), overwrite=force)
    return done


def _read(source: str | Path) -> ArrayWeights:
    path = Path(source)
    if path.suffix != ".ckpt" and not path.is_dir():
        return read_arrays(find(source))
    from glc.codec.weights.export import read_codec

    found = read_codec(path)
    try:
        networks.check(found.description)
    except ArchitectureError as error:
        raise WeightsError(f"{path}: {error}") from error
    tensors = {name: tensor.numpy() for name, tensor in found.model.state_dict().items()}
    return ArrayWeights(
        found.description, found.tables, found.rates, found.fingerprint, tensors, found.source
    )


def _about(weights: ArrayWeights, names: list[str]) -> dict[str, Any]:
    description = weights.description
    f = networks.downsampling(description["decoder"])
    return {
        "fingerprint": weights.fingerprint,
        "opset": OPSET,
        "graphs": [f"{name}.onnx" for name in names],
        "downsampling": f,
        "stride": f * (ArrayTransformCodec.stride if "analysis" in names else 1),
        "latent_channels": description["decoder"].get("latent_channels", 256),
        "rates": [dict(rate) for rate in weights.rates],
    }


def compare(weights: ArrayWeights, models: Mapping[str, bytes]) -> dict[str, tuple[float, float]]:
    """Return largest difference and PSNR of each graph against PyTorch.

    The input is an image of smooth noise; each network gets the output of PyTorch's network before it. g_a
    and g_s are compared at a rate index between two points, where there are several.

    Args:
        models: serialized graphs by name.
    """
    import onnxruntime
    import torch

    from glc.codec.weights.architecture import build_for

    tensors = {name: torch.tensor(array) for name, array in weights.tensors.items()}
    model = build_for(weights.description, tensors).eval()
    rate = min(0.625, model.num_rates - 1)
    coarse = np.random.default_rng(0).random((1, 3, _SIZE[0] + 1, _SIZE[1] + 1), np.float32) * 2 - 1
    sides = [side * model.stride for side in _SIZE]
    x = torch.nn.functional.interpolate(torch.from_numpy(coarse), sides, mode="bilinear", align_corners=True)

    def run(name: str, **inputs: Any) -> np.ndarray:
        session = onnxruntime.InferenceSession(models[name], providers=["CPUExecutionProvider"])
        found: np.ndarray = session.run(None, {key: np.asarray(value) for key, value in inputs.items()})[0]
        return found

    rates = np.array([rate], np.float32)
    with torch.inference_mode():
        latent = model.encoder(x)
        pairs: dict[str, tuple[Any, Callable[[], np.ndarray]]] = {
            "encoder": (latent, lambda: run("encoder", x=x)),
            "decoder": (model.decoder(latent), lambda: run("decoder", l_hat=latent)),
        }
        if "analysis" in models:
            y = model.coder.analysis(latent, rate)
            l_hat = model.coder.synthesis(y, rate)
            pairs["analysis"] = (y, lambda: run("analysis", l=latent, rate=rates))
            pairs["synthesis"] = (l_hat, lambda: run("synthesis", y_hat=y, rate=rates))
        return {name: _difference(np.asarray(expected), made()) for name, (expected, made) in pairs.items()}


def _difference(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    error = expected.astype(np.float64) - found
    spread = float(expected.max() - expected.min())
    mean_square = float(np.square(error).mean())
    decibels = math.inf if mean_square == 0 else 10 * math.log10(max(spread, 1e-12) ** 2 / mean_square)
    return float(np.abs(error).max()), decibels
