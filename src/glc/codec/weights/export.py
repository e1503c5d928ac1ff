"""Export training checkpoints as weights files."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glc.codec.entropy.latent_coding import make_latent_codec
from glc.codec.entropy.tables import Tables, density_tables, gaussian_tables, index_table
from glc.codec.weights.architecture import bake_projections, build
from glc.codec.weights.catalog import find
from glc.codec.weights.file import (
    Weights,
    build_model,
    decoder_digest,
    fill,
    fingerprints,
    read_weights,
    save,
)
from glc.codec.weights.labels import TRAINING_NETWORKS, CodecLabel, TrainingLabel, VariantLabel
from glc.codec.weights.state import half_precision, strip_prefix
from glc.codec.weights.trust import Trust
from glc.data.images import pad, read_rgb, stack_images
from glc.errors import WeightsError
from glc.io.checkpoint import Checkpoint, open_checkpoint
from glc.models.coder import TransformCoder
from glc.models.gate import QuantizationGate
from glc.models.glc import GLC
from glc.models.quantizer import VectorQuantizer


def model_from_checkpoint(
    source: str | Path | Checkpoint, trust: Trust = ()
) -> tuple[GLC, dict[str, Any], list[dict[str, Any]]]:
    """Return the codec in a training checkpoint, with its description and its rate points.

    EMA weights are used if the checkpoint has them. Projected codebooks are baked.

    Args:
        source: a checkpoint of stage II or III, open or not.

    Raises:
        WeightsError: the file holds no complete codec, or names a network of a package that is not trusted.
    """
    checkpoint = open_checkpoint(source)
    path = checkpoint.path
    stage = checkpoint.settings.get("stage", {})
    module = stage.get("module", {})
    description = module.get("model")
    if description is None:
        raise WeightsError(
            f"{path}: a checkpoint of stage={stage.get('name', 'unknown')} holds no complete codec; "
            "export one of stage=transform or stage=joint"
        )
    model = build_model(path, description, trust)
    fill(path, model, strip_prefix(checkpoint.state_dict, "model"))
    description = bake_projections(model, description)
    return model.eval(), description, rate_points(model, module.get("lmbda"))


def read_codec(source: str | Path | Checkpoint, trust: Trust = ()) -> Weights:
    """Return the codec of a weights file or a training checkpoint.

    Args:
        source: a weights file or a model's name; or a checkpoint of stage II or III (open or not), or the
            folder of its run: the codec is then the one that `glc export` writes without options.

    Raises:
        WeightsError: there is no such codec.
    """
    if not isinstance(source, Checkpoint):
        path = Path(source)
        if not path.is_dir() and path.suffix != ".ckpt":
            return read_weights(find(source), trust=trust)
        source = open_checkpoint(path / "checkpoints" / "last.ckpt" if path.is_dir() else path)
    if source.content["glc"].get("part", {}).get("kind") == "gate":
        return _gated(source, trust)
    model, description, rates = model_from_checkpoint(source, trust)
    tables = make_tables(model)
    made = fingerprints(model.state_dict(), description, tables)["fingerprint"]
    return Weights(model, description, tables, rates, made, str(source.path))


def codec_of(checkpoint: Checkpoint, trust: Trust = ()) -> Weights:
    """Return the codec that a network was trained for, from the run's `init_from`.

    Raises:
        WeightsError: `init_from` does not name it, or now holds another codec.
    """
    named = checkpoint.settings.get("init_from")
    problem = "its setting init_from does not name the codec"
    if isinstance(named, str):
        codec = read_codec(named, trust)
        if codec.fingerprint == checkpoint.content["glc"]["part"].get("fingerprint"):
            return codec
        problem = f"was trained for another codec than {named} now holds"
    raise WeightsError(f"{checkpoint.path}: {problem}; pass codec=read_codec(FILE)")


def _gated(checkpoint: Checkpoint, trust: Trust) -> Weights:
    """Return the codec of a checkpoint of stage=gate, with the gate."""
    codec, described = codec_of(checkpoint, trust), checkpoint.content["glc"]["part"]["description"]
    gate, coder = build(described), codec.model.coder
    if not isinstance(coder, TransformCoder) or not isinstance(gate, QuantizationGate):
        raise WeightsError(f"{checkpoint.path}: holds no gate for {codec.source}")
    fill(checkpoint.path, gate, strip_prefix(checkpoint.state_dict, "gate"))
    coder.gate = gate.eval()
    description = {**codec.description, "coder": {**codec.description["coder"], "gate": described}}
    made = fingerprints(codec.model.state_dict(), description, codec.tables)["fingerprint"]
    return replace(codec, description=description, fingerprint=made, source=str(checkpoint.path))


def rate_points(model: GLC, lmbda: Any = None) -> list[dict[str, Any]]:
    """Return the entries of `rates` in a weights file: each rate point's lambda, or None if unknown."""
    values = lmbda if isinstance(lmbda, list | tuple) and len(lmbda) == model.num_rates else None
    return [{"lmbda": None if values is None else float(values[k])} for k in range(model.num_rates)]


def make_tables(model: GLC, images: Iterable[Tensor] = ()) -> Tables:
    """Return new frequency tables for a model.

    Args:
        images: `[1, 3, H, W]` in [-1, 1], to count the indices of a categorical hyper-latent at all rate
            points: one table per point. Without images its indices are coded with fixed length, as in the
            paper.
    """
    coder: Any = model.coder
    hyper: Any = getattr(coder, "hyper", None)  # user-defined: recognised by its members, see protocols
    if hasattr(hyper, "density"):
        return gaussian_tables(density_tables(hyper.density))
    if not hasattr(hyper, "quantizer"):
        return gaussian_tables()
    counts = torch.zeros(model.num_rates, hyper.quantizer.size, dtype=torch.long)
    with torch.inference_mode():
        for x in images:
            latent = model.encoder(pad(x, model.stride))
            for rate, count in enumerate(counts):
                indices = hyper(coder.analysis(latent, rate).float()).indices
                count += torch.bincount(indices.flatten(), minlength=len(count))
    # Without images no table: fixed length.
    return gaussian_tables(z_rates=[index_table(count) for count in counts if count.any()])


def export(
    checkpoint: str | Path,
    destination: str | Path,
    half: bool = False,
    photos: Iterable[str | Path] = (),
    trust: Trust = (),
) -> None:
    """Write the codec in a training checkpoint as a weights file (safetensors).

    A checkpoint of stage=restoration or stage=stylization gives the file of the encoder or decoder variant
    that was trained, see `glc.codec.weights.catalog`. A weights file gives the same codec with new tables.

    Args:
        checkpoint: of stage II or III, or of an application; or a codec's weights file.
        half: store the weights in half precision; the codec computes with the rounded values.
        photos: images on which to count the indices of the hyper-latent, see `make_tables`.

    Raises:
        WeightsError: the checkpoint holds no complete codec, or names a network of a package that is not
            trusted.
        ImageError: an image cannot be read.
    """
    counted = any(True for _ in photos)
    source: str | Path | Checkpoint = checkpoint
    if Path(checkpoint).suffix != ".safetensors":
        source = opened = open_checkpoint(checkpoint)
        if opened.content["glc"].get("part", {"kind": "gate"}).get("kind") != "gate":
            if counted:
                raise WeightsError(f"{checkpoint}: --images only applies to full codecs; omit it")
            return _export_variant(opened, destination, half)
    weights = read_codec(source, trust)
    model, description, rates = weights.model, weights.description, weights.rates
    state: Mapping[str, Tensor] = model.state_dict()
    if half:
        state = half_precision(state, checkpoint)
        fill(checkpoint, model, state)  # the tables depend on the stored values
    tables = weights.tables
    if counted or not hasattr(getattr(model.coder, "hyper", None), "quantizer"):
        tables = counted_tables(checkpoint, model, photos)
    try:
        make_latent_codec(model.coder, tables)
    except ValueError as error:
        raise WeightsError(f"{checkpoint}: cannot encode files: {error}") from error
    save(destination, state, CodecLabel(description, tables, rates))


def counted_tables(source: object, model: GLC, photos: Iterable[str | Path]) -> Tables:
    """Return `make_tables` of image files.

    Args:
        source: the codec's file, for messages.

    Raises:
        WeightsError: there are images, but z is not categorical.
        ImageError: an image cannot be read.
    """
    if not hasattr(getattr(model.coder, "hyper", None), "quantizer") and any(True for _ in photos):
        raise WeightsError(
            f"{source}: has no categorical hyper-latent to count frequencies of; omit --images"
        )
    return make_tables(model, (stack_images([read_rgb(photo)]) for photo in photos))


def _export_variant(checkpoint: Checkpoint, destination: str | Path, half: bool) -> None:
    """Write the encoder or decoder variant that a fine-tuning stage trained (its EMA weights)."""
    path, part = checkpoint.path, checkpoint.content["glc"]["part"]
    if not isinstance(part, Mapping) or part.get("kind") not in ("encoder", "decoder"):
        raise WeightsError(f"{path}: does not hold an encoder or decoder variant")
    state = strip_prefix(checkpoint.state_dict, part["kind"])
    if half:
        state = half_precision(state, path)
    settings = {"stage": checkpoint.stage, "degradation": checkpoint.settings.get("degradation")}
    about = {key: value for key, value in settings.items() if value is not None} | (part.get("about") or {})
    label = VariantLabel(part["kind"], part["description"], part["fingerprint"], about)
    save(destination, state, label)


def export_training_weights(checkpoint: str | Path, destination: str | Path, half: bool = False) -> list[str]:
    """Write the training weights of a checkpoint: the networks that its codec's weights file omits.

    `init_from=[CODEC,FILE]` then warm-starts a stage as the checkpoint would, without its optimizers. Stage
    III has all of `TRAINING_NETWORKS`, stage II has C and the code predictor. An untrained C is omitted, and
    a projected C is baked.

    Args:
        checkpoint: of stage II or III.
        half: store the weights in half precision.

    Returns:
        The names of the networks in it, for people.

    Raises:
        WeightsError: the checkpoint has no codec or no training weights, or a weight is not finite or exceeds
            half precision.
    """
    state = open_checkpoint(checkpoint).state_dict
    decoder = strip_prefix(state, "model.decoder")
    found = {name: strip_prefix(state, name) for name in TRAINING_NETWORKS}
    if not found["quantizer"].get("initialized", True):
        del found["quantizer"]
    found = {name: network for name, network in found.items() if network}
    if not found or not decoder:
        raise WeightsError(
            f"{checkpoint}: holds no codec with training weights; give a checkpoint of stage=transform or "
            "stage=joint"
        )
    if "projection.weight" in found.get("quantizer", ()):
        found["quantizer"] = VectorQuantizer.baked(found["quantizer"])
    tensors = {f"{name}.{key}": tensor for name, network in found.items() for key, tensor in network.items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{checkpoint}: {key} is not finite")
    if half:
        tensors = half_precision(tensors, checkpoint)
    save(destination, tensors, TrainingLabel(list(found), decoder_digest(decoder)))
    return [TRAINING_NETWORKS[name] for name in found]
