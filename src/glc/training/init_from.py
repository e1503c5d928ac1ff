"""Start a stage from the weights of another (`init_from=`)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glc.codec.convert.detect import foreign_networks
from glc.codec.convert.read import open_source
from glc.codec.weights import training
from glc.errors import WeightsError
from glc.io.checkpoint import read_checkpoint
from glc.models.autoencoder import Decoder
from glc.models.quantizer import VectorQuantizer
from glc.training.stages.base import Stage

log = logging.getLogger(__name__)

NETWORKS = {
    # network of the codec stages: the same network in stage I. C is the refiner's too: it comes after.
    "model.encoder": "autoencoder.encoder",
    "model.decoder": "autoencoder.decoder",
    "model.coder": None,
    "model.refiner": None,
    "quantizer": "autoencoder.quantizer",
    "code_loss.predictor": None,
    "vq_encoder": None,
    "adversarial.discriminator": "adversarial.discriminator",
}

_PUBLISHED = {
    # network in a published file: the same network of the codec stages
    "encoder": "model.encoder",
    "decoder": "model.decoder",
    "quantizer": "quantizer",
    "coder": "model.coder",
    "refiner": "model.refiner",
    "predictor": "code_loss.predictor",
}


_NO_CODEBOOK = (
    ". C gives the targets of code prediction: train without (model/variants=no_code_prediction), or give "
    "what `glc export --training` wrote beside the codec as well (init_from=[CODEC,FILE])"
)


class TransferError(WeightsError):
    """A checkpoint does not fit the model or the stage."""


MAY_DIFFER = (
    *("resume", "overwrite", "init_from", "dir", "runs_dir", "max_minutes", "validate_first"),
    *("logger", "stage.module", "trainer.default_root_dir"),
    *("callbacks.last", "callbacks.milestones", "callbacks.time_limit", "callbacks.progress"),
    *("callbacks.learning_rate", "callbacks.throughput", "callbacks.panel", "callbacks.histograms"),
)
"""Settings of which nobody needs to be told that a continued run has others."""


def check_resumable(stage: Stage, path: str | Path) -> list[str]:
    """Check that the weights of a checkpoint are those of a stage, before a run is continued from it.

    Returns:
        How the settings differ from those that the checkpoint was trained with, a line each.

    Raises:
        WeightsError: when the file cannot be read.
        TransferError: when they differ: the first keys that do.
    """
    checkpoint = read_checkpoint(path)
    problem = _difference(checkpoint["state_dict"], stage.state_dict())
    if problem:
        raise TransferError(
            f"{path}: cannot be continued by this model: {problem}. {_trained_model(checkpoint)}"
        )
    codec = checkpoint["glc"].get("part", {}).get("fingerprint")
    wanted = getattr(stage, "part", {}).get("fingerprint")
    if codec != wanted:
        raise TransferError(
            f"{path}: was trained for the codec {str(codec)[:8]}, not for {str(wanted)[:8]}: "
            "give that codec as init_from="
        )
    before, now = (dict(_settings(recipe)) for recipe in (checkpoint["glc"]["recipe"], stage.recipe))
    return [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _settings(recipe: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of a configuration, without what may differ or follows from others."""
    for key, value in recipe.items():
        name = f"{prefix}{key}"
        if name in MAY_DIFFER:
            continue
        if isinstance(value, dict):
            yield from _settings(value, f"{name}.")
        else:
            yield name, value


def _trained_model(checkpoint: dict[str, Any]) -> str:
    name = checkpoint["glc"]["recipe"].get("model", {}).get("name", "unknown")
    return f"The checkpoint has model={name}"


def transfer(stage: Stage, *paths: str | Path) -> list[str]:
    """Load every network that a stage shares with files, whole or not at all.

    The averaged weights are taken where a file has them. A decoder without fine blocks becomes one that
    has them and draws the same.

    Args:
        stage: the stage to start.
        *paths: checkpoints of this or another stage, or files of `glc.codec.convert`: published weights, or
            what `glc convert` made of them, codecs or their companions. Of several, the first that has a
            network gives it.

    Returns:
        The networks that were loaded, by their names in the stage.

    Raises:
        WeightsError: when a file cannot be read.
        TransferError: when a network differs: the first keys that do, and what the file's model was.
    """
    target = stage.state_dict()
    # The authors trained two code predictors: one on coded latents, one on latents of coded pictures.
    pixels = bool(_below(target, "vq_encoder"))
    sources = [(path, *_networks(path, pixels)) for path in paths]
    given: dict[str | Path, list[str]] = {path: [] for path in paths}
    loaded: list[str] = []
    for codec_name, vqvae_name in NETWORKS.items():
        names = [n for n in (codec_name, vqvae_name) if n is not None]
        here = next((n for n in names if _below(target, n)), None)
        giver = next((source for source in sources if codec_name in source[1]), None)
        if here is None or giver is None:
            continue
        path, source, origin = giver
        weights = _fitting(source[codec_name], stage.get_submodule(here))
        problem = _difference(weights, _below(target, here))
        if problem:
            raise TransferError(f"{path}: {here} does not fit: {problem}. {origin}")
        network = stage.get_submodule(here)
        network.load_state_dict(weights)
        if isinstance(network, VectorQuantizer):
            # However it was trained: this C is not one that was only drawn at random.
            network.initialized.fill_(True)
        loaded.append(here)
        given[path].append(here)
    missing = stage.missing(loaded)
    if missing:
        files = ", ".join(str(path) for path in paths)
        predicts = getattr(getattr(stage, "code_loss", None), "predictor", None) is not None
        remedy = _NO_CODEBOOK if missing == ["quantizer"] and predicts else ""
        raise TransferError(
            f"{files}: has no {', '.join(missing)}, which this stage starts from. {sources[0][2]}{remedy}"
        )
    for path, names in given.items():
        if names:
            log.info("starting from %s: %s", path, ", ".join(names))
        else:
            log.warning("%s: gave nothing that is not in the files before it, or that this stage has", path)
    _check_companions(sources)
    stage.adopt(loaded)
    return loaded


def _check_companions(sources: Sequence[tuple[str | Path, dict[str, dict[str, Tensor]], str]]) -> None:
    """Warn of a companion that belongs to another codec than the one beside it."""
    decoder = next((found["model.decoder"] for _, found, _ in sources if "model.decoder" in found), None)
    for path, _, _ in sources:
        wanted = training.codec_of(path)
        if wanted and decoder is not None and training.digest(decoder) != wanted:
            log.warning("%s: was made beside another codec than the one given with it", path)


def transfer_discriminator(stage: Stage, path: str | Path) -> bool:
    """Load the discriminator of a checkpoint into a stage; return whether the checkpoint has one.

    Stage II trains none, so stage III gets that of stage I from there.

    Raises:
        WeightsError: when the file cannot be read.
        TransferError: when the two discriminators differ.
    """
    name = "adversarial.discriminator"
    networks, origin = _networks(path, pixels=False)
    weights = networks.get(name)
    if weights is None:
        return False
    problem = _difference(weights, _below(stage.state_dict(), name))
    if problem:
        raise TransferError(f"{path}: {name} does not fit: {problem}. {origin}")
    stage.get_submodule(name).load_state_dict(weights)
    return True


def _networks(path: str | Path, pixels: bool) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Return the networks in a file by their names in the codec stages, and what the file is.

    Args:
        path: the file.
        pixels: take the code predictor for latents of coded pictures where there are two.
    """
    source = open_source(path)
    if training.KEY in source.metadata:
        found = {name: _below(source.tensors, name) for name in training.NETWORKS}
        damaged = [key for key, tensor in source.tensors.items() if not tensor.isfinite().all()]
        if damaged or not any(found.values()):
            raise WeightsError(
                f"{path}: damaged: {damaged[0] if damaged else 'no network'} in it can be used"
            )
        return {name: state for name, state in found.items() if state}, "The file is a codec's companion"
    if source.ours:
        checkpoint = read_checkpoint(path)
        state = checkpoint["state_dict"]
        found = {name: _below(state, name) for name in NETWORKS}
        for codec_name, vqvae_name in NETWORKS.items():
            if not found[codec_name] and vqvae_name is not None:
                found[codec_name] = _below(state, vqvae_name)
        codec = bool(_below(state, "model"))
        drawn = "quantizer.initialized" in state and not state["quantizer.initialized"]
        if codec and drawn:
            found["quantizer"] = {}  # of a training without code prediction: never trained
        return _completed(found), _trained_model(checkpoint)
    published, title = foreign_networks(path)
    predictor = published.pop("pixel_predictor", None)
    if pixels and predictor is not None:
        published["predictor"] = predictor
    return _completed(
        {_PUBLISHED[name]: weights for name, weights in published.items()}
    ), f"The file is {title}"


def _completed(found: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Return the networks that are there; C and CP are a refiner's where they are not by themselves."""
    refiner = found.get("model.refiner", {})
    for name, inside in (("quantizer", "quantizer"), ("code_loss.predictor", "predictor")):
        if not found.get(name):
            found[name] = _below(refiner, inside)
    return {name: weights for name, weights in found.items() if weights}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) + 1 :]: value for key, value in state.items() if key.startswith(prefix + ".")}


def _fitting(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the weights, grown where they are of a decoder without the fine blocks that the network has."""
    if isinstance(network, Decoder) and network.fine_blocks and len(weights) < len(network.state_dict()):
        with suppress(KeyError, RuntimeError):  # of another decoder: what differs is said later
            return network.grown(weights)
    return weights


def _difference(source: dict[str, Tensor], target: dict[str, Tensor], limit: int = 3) -> str:
    """Say how two sets of weights differ, by the first few keys; empty when they fit."""
    missing = [k for k in target if k not in source]
    unexpected = [k for k in source if k not in target]
    shapes = [
        f"{k} is {list(source[k].shape)}, not {list(v.shape)}"
        for k, v in target.items()
        if k in source and source[k].shape != v.shape
    ]
    parts = []
    for label, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
        if keys:
            rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
            parts.append(f"{label}: {', '.join(keys[:limit])}{rest}")
    return "; ".join(parts)
