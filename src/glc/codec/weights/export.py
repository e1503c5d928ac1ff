"""From a training checkpoint to a codec's weights file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glc.codec.entropy.latent_coding import make_latent_codec
from glc.codec.entropy.tables import Table, Tables, density_tables, gaussian_tables, index_table
from glc.codec.images import pad
from glc.codec.weights.architecture import without_projections
from glc.codec.weights.catalog import find
from glc.codec.weights.file import Weights, build_model, fill, fingerprints, read_weights, save_weights
from glc.codec.weights.variants import export_part
from glc.data.images import read_rgb, stack_pictures
from glc.errors import WeightsError
from glc.io.checkpoint import read_checkpoint
from glc.models.coder import TransformCoder
from glc.models.glc import GLC
from glc.models.quantizer import VectorQuantizer


def model_from_checkpoint(path: str | Path) -> tuple[GLC, dict[str, Any], list[dict[str, Any]]]:
    """Return the codec in a training checkpoint, with its description and its rate points.

    The averaged weights are taken where the checkpoint has them. Projected codebooks become plain ones.

    Raises:
        WeightsError: when the file holds no whole codec.
    """
    checkpoint = read_checkpoint(path)
    stage = checkpoint["glc"]["recipe"].get("stage", {})
    module = stage.get("module", {})
    description = module.get("model")
    if description is None:
        raise WeightsError(
            f"{path}: a checkpoint of stage={stage.get('name', 'unknown')} holds no whole codec; "
            "export one of stage=transform or stage=joint"
        )
    model = build_model(path, description)
    prefix = "model."
    state = {k[len(prefix) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    fill(path, model, state)
    fold_codebooks(model)
    return model.eval(), without_projections(description), rate_points(model, module.get("lmbda"))


def read_codec(source: str | Path) -> Weights:
    """Return the codec that an application is trained for.

    Args:
        source: a weights file or a known model's name; or a checkpoint of stage II or III, or the folder of
            its run, for the codec that `glc export` without options makes of it.

    Raises:
        WeightsError: when there is no such codec.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    elif path.suffix != ".ckpt":
        return read_weights(find(source))
    model, description, rates = model_from_checkpoint(path)
    tables = make_tables(model)
    made = fingerprints(model.state_dict(), description, tables)["fingerprint"]
    return Weights(model, description, tables, rates, made, str(path))


def fold_codebooks(model: GLC) -> None:
    """Make projected codebooks plain ones: the decoder looks codes up, it does not compute them."""
    for module in model.modules():
        if isinstance(module, VectorQuantizer):
            module.fold()


def rate_points(model: GLC, lmbda: Any = None) -> list[dict[str, Any]]:
    """Return what a weights file says of each rate point: the lambda of its training, where it is known."""
    values = lmbda if isinstance(lmbda, list | tuple) and len(lmbda) == model.num_rates else None
    return [{"lmbda": None if values is None else float(values[k])} for k in range(model.num_rates)]


def make_tables(model: GLC, pictures: Iterable[Tensor] = ()) -> Tables:
    """Return new frequency tables for a model.

    Args:
        model: the codec.
        pictures: `[1, 3, H, W]` in [-1, 1]. The frequencies of a categorical hyper code are counted on them,
            over all rate points; without any its code is of fixed length, as in the paper.
    """
    coder = model.coder
    hyper: Any = getattr(coder, "hyper", None)  # a user's own is known by what it has: glc.models.protocols
    z: list[Table] = []
    if hasattr(hyper, "density"):
        z = density_tables(hyper.density)
    elif isinstance(coder, TransformCoder):
        counts = torch.zeros(hyper.quantizer.size, dtype=torch.long)
        with torch.inference_mode():
            for x in pictures:
                latent = model.encoder(pad(x, model.stride))
                for rate in range(model.num_rates):
                    indices = hyper(coder.analysis(latent, rate).float()).indices
                    counts += torch.bincount(indices.flatten(), minlength=len(counts))
        if counts.any():  # without pictures there are none
            z = [index_table(counts)]
    return gaussian_tables(z)


def export(
    checkpoint: str | Path,
    destination: str | Path,
    half: bool = False,
    photos: Iterable[str | Path] = (),
) -> None:
    """Write a training checkpoint's codec as a weights file: tensors and their description, no pickle.

    The file is written under another name and renamed when it is whole. Of a checkpoint of stage=restoration
    or stage=stylization it is the file of the encoder or decoder that was trained: see `glc.codec.weights.variants`.

    Args:
        checkpoint: of stage II or III, or of an application.
        destination: the weights file.
        half: store the weights in half precision; the codec computes with what is stored.
        photos: pictures from which to count the frequencies of the hyper code; see `make_tables`.

    Raises:
        WeightsError: when the checkpoint holds no whole codec.
        glc.data.images.ImageError: when a picture cannot be read.
    """
    if "part" in read_checkpoint(checkpoint)["glc"]:
        if any(True for _ in photos):
            raise WeightsError(f"{checkpoint}: one network has no frequencies to count: leave --photos away")
        return export_part(checkpoint, destination, half)
    model, description, rates = model_from_checkpoint(checkpoint)
    if half:
        _halve(checkpoint, model)
    if not hasattr(getattr(model.coder, "hyper", None), "quantizer") and any(True for _ in photos):
        raise WeightsError(f"{checkpoint}: has no categorical hyper code whose frequencies could be counted")
    pictures = (stack_pictures([read_rgb(photo)]) for photo in photos)
    tables = make_tables(model, pictures)
    try:
        make_latent_codec(model.coder, tables)
    except ValueError as error:
        raise WeightsError(f"{checkpoint}: cannot be used for files: {error}") from error
    state: Mapping[str, Tensor] = model.state_dict()
    if half:
        state = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    save_weights(destination, state, description, tables, rates)


@torch.no_grad()
def _halve(path: str | Path, model: GLC) -> None:
    """Round the weights to half precision, so that the tables are made with what will be stored."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
            if not tensor.isfinite().all():
                raise WeightsError(f"{path}: {name} does not fit half precision; export without --half")
