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
from glc.codec.weights.variants import Variant, attach
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
    lmbda = checkpoint.content["glc"].get("lmbda", module.get("lmbda"))  # moved by callbacks=rate_control
    return model.eval(), description, rate_points(model, lmbda)


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
    part = source.content["glc"].get("part")
    if isinstance(part, Mapping) and part.get("kind") == "gate":
        return _gated(source, trust)
    model, description, rates = model_from_checkpoint(source, trust)
    tables = make_tables(model)
    made = fingerprints(model.state_dict(), description, tables)["fingerprint"]
    return Weights(model, description, tables, rates, made, str(source.path))


def codec_of(checkpoint: Checkpoint, trust: Trust = (), codec: str | Path | None = None) -> Weights:
    """Return the codec that a network was trained for.

    Args:
        codec: its file or name; by default the run's `init_from`.

    Raises:
        WeightsError: `init_from` does not name it, or another codec is found.
    """
    named = checkpoint.settings.get("init_from") if codec is None else str(codec)
    problem = "its setting init_from does not name the codec"
    if isinstance(named, str):
        found = read_codec(named, trust)
        if found.fingerprint == checkpoint.content["glc"]["part"].get("fingerprint"):
            return found
        problem = f"was trained for another codec than {named} now holds"
    raise WeightsError(
        f"{checkpoint.path}: {problem}; give it: --codec FILE, or in Python pass codec=read_codec(FILE)"
    )


def _gated(checkpoint: Checkpoint, trust: Trust, named: str | Path | None = None) -> Weights:
    """Return the codec of a checkpoint of stage=gate, with the gate."""
    codec = codec_of(checkpoint, trust, named)
    described = checkpoint.content["glc"]["part"]["description"]
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
    codec: str | Path | None = None,
) -> None:
    """Write the codec in a training checkpoint as a weights file (safetensors).

    A checkpoint of stage=restoration, stage=stylization or stage=polish gives the file of the encoder or
    decoder variant that was trained, see `glc.codec.weights.catalog`, or with `codec` a complete codec; one
    of stage=gate always gives a complete codec. A weights file gives the same codec with new tables.

    Args:
        checkpoint: of stage II or III, or of a fine-tune stage; or a codec's weights file.
        half: store the weights in half precision; the codec computes with the rounded values.
        photos: images on which to count the indices of the hyper-latent, see `make_tables`.
        codec: the codec that a variant was trained for, as `read_codec` takes it: write it with the trained
            network in place of its own. It keeps its tables, unless `photos` are given. Symbols and sizes of
            files stay the same, but D is part of the fingerprint: with another D, files name another model.

    Raises:
        WeightsError: the checkpoint holds no complete codec, or names a network of a package that is not
            trusted.
        ImageError: an image cannot be read.
    """
    opened = None if Path(checkpoint).suffix == ".safetensors" else open_checkpoint(checkpoint)
    weights = _complete(opened or checkpoint, photos, trust, codec)
    if weights is None:
        assert opened is not None
        return _export_variant(opened, destination, half)
    model, description, rates = weights.model, weights.description, weights.rates
    state: Mapping[str, Tensor] = model.state_dict()
    if half:
        state = half_precision(state, checkpoint)
        fill(checkpoint, model, state)  # the tables depend on the stored values
    tables = weights.tables
    if any(True for _ in photos) or not hasattr(getattr(model.coder, "hyper", None), "quantizer"):
        tables = counted_tables(checkpoint, model, photos)
    try:
        make_latent_codec(model.coder, tables)
    except ValueError as error:
        raise WeightsError(f"{checkpoint}: cannot encode files: {error}") from error
    save(destination, state, CodecLabel(description, tables, rates))


def _complete(
    source: str | Path | Checkpoint, photos: Iterable[str | Path], trust: Trust, codec: str | Path | None
) -> Weights | None:
    """Return the complete codec that an export writes; None for a variant."""
    part = source.content["glc"].get("part") if isinstance(source, Checkpoint) else None
    path = source.path if isinstance(source, Checkpoint) else source
    if not isinstance(source, Checkpoint) or part is None:
        if codec is not None:
            raise WeightsError(f"{path}: holds a complete codec, not a variant of one; omit --codec")
        return read_codec(source, trust)
    if isinstance(part, Mapping) and part.get("kind") == "gate":
        return _gated(source, trust, codec)
    if codec is not None:
        return _with_variant(source, read_codec(codec, trust), trust)
    if any(True for _ in photos):
        raise WeightsError(f"{path}: --images only applies to full codecs; omit it, or add --codec")
    return None


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


def _variant(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], VariantLabel]:
    """Return the variant that a fine-tune stage trained: its EMA weights and its label."""
    path, part = checkpoint.path, checkpoint.content["glc"]["part"]
    if not isinstance(part, Mapping) or part.get("kind") not in ("encoder", "decoder"):
        raise WeightsError(f"{path}: does not hold an encoder or decoder variant")
    settings = {"stage": checkpoint.stage, "degradation": checkpoint.settings.get("degradation")}
    about = {key: value for key, value in settings.items() if value is not None} | (part.get("about") or {})
    label = VariantLabel(part["kind"], part["description"], part["fingerprint"], about)
    return strip_prefix(checkpoint.state_dict, part["kind"]), label


def _export_variant(checkpoint: Checkpoint, destination: str | Path, half: bool) -> None:
    state, label = _variant(checkpoint)
    save(destination, half_precision(state, checkpoint.path) if half else state, label)


def _with_variant(checkpoint: Checkpoint, codec: Weights, trust: Trust) -> Weights:
    """Return a codec with a variant that was trained for it in place of its own network."""
    state, label = _variant(checkpoint)
    network = build(label.description, trust)
    fill(checkpoint.path, network, state)
    changed = attach(codec, Variant(label, network, str(checkpoint.path)))
    return replace(changed, description={**codec.description, label.kind: label.description})


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
