"""A codec's weights file: from a training checkpoint, and back to a model."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from glc.codec.architecture import ArchitectureError, build, without_projections
from glc.codec.checkpoint import WeightsError, read_checkpoint
from glc.models.glc import GLC
from glc.models.quantizer import VectorQuantizer

FORMAT = 1
"""Version of the weights file."""


def model_from_checkpoint(path: str | Path) -> tuple[GLC, dict[str, Any]]:
    """Return the codec in a training checkpoint, with its description.

    The averaged weights are taken where the checkpoint has them. Projected codebooks become plain ones.

    Raises:
        WeightsError: when the file holds no whole codec.
    """
    checkpoint = read_checkpoint(path)
    stage = checkpoint["glc"]["recipe"].get("stage", {})
    description = stage.get("module", {}).get("model")
    if description is None:
        raise WeightsError(
            f"{path}: a checkpoint of stage={stage.get('name', 'unknown')} holds no whole codec; "
            "export one of stage=transform or stage=joint"
        )
    model = _build(path, description)
    prefix = "model."
    state = {k[len(prefix) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    _fill(path, model, state)
    for module in model.modules():
        if isinstance(module, VectorQuantizer):
            module.fold()
    return model.eval(), without_projections(description)


def export(checkpoint: str | Path, destination: str | Path) -> None:
    """Write a training checkpoint's codec as a weights file: tensors and their description, no pickle.

    The file is written under another name and renamed when it is whole.

    Raises:
        WeightsError: when the checkpoint holds no whole codec.
    """
    model, description = model_from_checkpoint(checkpoint)
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.{os.getpid()}.part")
    metadata = {"format": str(FORMAT), "model": json.dumps(description, sort_keys=True)}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    try:
        save_file(tensors, partial, metadata)
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)


def load_model(path: str | Path) -> GLC:
    """Return the model in a weights file, in evaluation mode on the CPU.

    Raises:
        WeightsError: when the file is missing, is not a codec's, or is of a newer format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from error
    if "model" not in metadata or not metadata.get("format", "").isdecimal():
        raise WeightsError(f"{path}: has no description of a codec in it; make such a file with `glc export`")
    if int(metadata["format"]) > FORMAT:
        raise WeightsError(f"{path}: format {metadata['format']} is newer than this glc reads ({FORMAT})")
    try:
        description = json.loads(metadata["model"])
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its description cannot be read ({error})") from error
    model = _build(path, description)
    _fill(path, model, tensors)
    return model.eval()


def _build(path: str | Path, description: Any) -> GLC:
    try:
        model = build(description)
    except ArchitectureError as error:
        raise WeightsError(f"{path}: {error}") from error
    if not isinstance(model, GLC):
        raise WeightsError(f"{path}: describes {type(model).__name__}, not a codec")
    return model


def _fill(path: str | Path, model: GLC, state: dict[str, Tensor]) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path}: the weights do not fit their description: {reason}") from error
