"""Warm start of a stage from the networks in other files (`init_from=`), and checks before a run resumes."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import lightning as L
from torch import Tensor, nn

from glc.codec.convert.detect import foreign_networks
from glc.codec.convert.read import Source
from glc.codec.weights.file import decoder_digest
from glc.codec.weights.labels import TRAINING_NETWORKS, TrainingLabel
from glc.codec.weights.state import difference, strip_prefix
from glc.errors import WeightsError
from glc.io.checkpoint import Checkpoint
from glc.models.autoencoder import Decoder
from glc.models.quantizer import VectorQuantizer
from glc.training.networks import DISCRIMINATOR, NETWORKS, own_networks
from glc.training.stages.base import Stage
from glc.training.stages.finetune import FineTuneStage

log = logging.getLogger(__name__)

_PUBLISHED = {
    # network in a third-party checkpoint: the same network of the codec stages
    "encoder": "model.encoder",
    "decoder": "model.decoder",
    "quantizer": "quantizer",
    "coder": "model.coder",
    "refiner": "model.refiner",
    "predictor": "code_loss.predictor",
}

_NO_CODEBOOK = (
    ". Code prediction needs C: train without it (model/variants=no_code_prediction), or add the training "
    "weights that `glc export --training` wrote beside the codec (init_from=[CODEC,FILE])"
)


class TransferError(WeightsError):
    """A checkpoint does not fit the model or the stage."""


MAY_DIFFER = (
    *("resume", "overwrite", "init_from", "dir", "runs_dir", "max_minutes", "validate_first"),
    *("logger", "stage.codec", "stage.module", "trainer.default_root_dir"),
    *("callbacks.last", "callbacks.milestones", "callbacks.time_limit", "callbacks.progress"),
    *("callbacks.learning_rate", "callbacks.throughput", "callbacks.panel", "callbacks.histograms"),
    "callbacks.sweep_settings",
)
"""Settings that may change on resume without a warning, and settings derived from others."""


def check_resumable(stage: L.LightningModule, checkpoint: Checkpoint, settings: dict[str, Any]) -> list[str]:
    """Check that a run can resume from a checkpoint: its weights must fit the stage.

    Args:
        stage: the stage.
        checkpoint: the checkpoint.
        settings: of this run.

    Returns:
        One line for each setting that differs from the checkpoint's.

    Raises:
        TransferError: the weights do not fit; the message names the first keys that differ.
    """
    path = checkpoint.path
    problem = difference(checkpoint.state_dict, stage.state_dict())
    if problem:
        raise TransferError(f"{path}: does not fit this model: {problem}. {_trained_model(checkpoint)}")
    codec = checkpoint.content["glc"].get("part", {}).get("fingerprint")
    wanted = stage.variant["fingerprint"] if isinstance(stage, FineTuneStage) else None
    if codec != wanted:
        raise TransferError(
            f"{path}: was trained for the codec {str(codec)[:8]}, not for {str(wanted)[:8]}: "
            "set init_from= to that codec"
        )
    before, now = dict(_flat(checkpoint.settings)), dict(_flat(settings))
    return [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of a configuration, without `MAY_DIFFER`."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name in MAY_DIFFER:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _trained_model(checkpoint: Checkpoint) -> str:
    name = checkpoint.settings.get("model", {}).get("name", "unknown")
    return f"The checkpoint has model={name}"


class _Given(NamedTuple):
    """The networks in a file."""

    source: Source
    networks: dict[str, dict[str, Tensor]]
    """State dicts by the networks' names in the codec stages; for a stage's own networks, by those there."""
    origin: str
    """Description of the file, for messages."""


def warm_start(
    stage: L.LightningModule,
    *sources: Source,
    discriminator: Source | None = None,
    new_discriminator: bool = False,
) -> list[str]:
    """Load every network that a stage shares with files, each completely or not at all.

    Networks are matched by name: those of `NETWORKS`, and any other submodule of the stage that a checkpoint
    also has. EMA weights are used where a file has them. A decoder with refinement blocks can be loaded from
    one without them: it decodes the same.

    Args:
        stage: the stage to start; for a `Stage`, `missing` and `on_weights_loaded` are called.
        *sources: opened checkpoints of this or another stage, third-party checkpoints, or weights files:
            codecs, auto-encoders, training weights. A network is loaded from the first file that has it.
        discriminator: a file from which only the discriminator is loaded, if no source has one.
        new_discriminator: load no discriminator.

    Returns:
        The networks that were loaded, by their names in the stage.

    Raises:
        WeightsError: a file is corrupt or of unknown kind.
        TransferError: a network does not fit (the message names the first keys that differ and the file's
            model), or none is shared.
    """
    target = stage.state_dict()
    own = own_networks(stage)
    # The authors published two code predictors: one for coded latents, one for latents of coded images.
    pixels = bool(strip_prefix(target, "vq_encoder"))
    files = [_Given(source, *_networks(source, own, pixels)) for source in sources]
    if discriminator is not None:
        networks, origin = _networks(discriminator, [], pixels)
        files.append(_Given(discriminator, {k: v for k, v in networks.items() if k == DISCRIMINATOR}, origin))
    for file in files if new_discriminator else ():
        file.networks.pop(DISCRIMINATOR, None)
    taken: dict[str, list[str]] = {str(file.source.path): [] for file in files}
    for name, alias in {**NETWORKS, **dict.fromkeys(own)}.items():
        here = next((n for n in (name, alias) if n is not None and strip_prefix(target, n)), None)
        giver = next((file for file in files if name in file.networks), None)
        if here is None or giver is None:
            continue
        network = stage.get_submodule(here)
        weights = _fitting(giver.networks[name], network)
        problem = difference(weights, strip_prefix(target, here))
        if problem:
            remedy = "; stage.discriminator_from=none trains a new one" if here == DISCRIMINATOR else ""
            text = f"{giver.source.path}: {here} does not fit: {problem}. {giver.origin}"
            raise TransferError(text + remedy)
        network.load_state_dict(weights)
        if isinstance(network, VectorQuantizer):
            # Whatever the file says: a loaded codebook must not be initialised again by k-means.
            network.initialized.fill_(True)
        taken[str(giver.source.path)].append(here)
    loaded = [name for names in taken.values() for name in names]
    if sources:
        _check_needs(stage, loaded, files)
    _check_training_weights(files)
    for path, names in taken.items():
        if names:
            log.info("loaded from %s: %s", path, ", ".join(names))
        else:
            log.warning("%s: nothing loaded: no network that this stage needs and earlier files lack", path)
    if isinstance(stage, Stage):
        stage.on_weights_loaded(loaded)
    return loaded


def _check_needs(stage: L.LightningModule, loaded: list[str], files: Sequence[_Given]) -> None:
    """Raise if the files lack a network that the stage needs, or have none of its networks."""
    missing = stage.missing(loaded) if isinstance(stage, Stage) else []
    names = ", ".join(str(file.source.path) for file in files)
    if missing:
        predicts = getattr(getattr(stage, "code_loss", None), "predictor", None) is not None
        remedy = _NO_CODEBOOK if missing == ["quantizer"] and predicts else ""
        raise TransferError(
            f"{names}: has no {', '.join(missing)}, which this stage needs. {files[0].origin}{remedy}"
        )
    if not loaded:
        raise TransferError(
            f"{names}: has none of this stage's networks. {files[0].origin}; to train from scratch, set "
            "init_from=none"
        )


def _check_training_weights(files: Sequence[_Given]) -> None:
    """Warn if training weights were exported beside another codec than the given one."""
    decoder = next((f.networks["model.decoder"] for f in files if "model.decoder" in f.networks), None)
    for file in files:
        about = file.source.metadata.get(TrainingLabel.MARK)
        if about is None or decoder is None:
            continue
        with suppress(KeyError, TypeError, ValueError):
            if json.loads(about)["decoder"] != decoder_digest(decoder):
                log.warning("%s: was exported beside another codec than the given one", file.source.path)


def has_discriminator(source: Source) -> bool:
    """Return whether a file has a discriminator."""
    return any(name.startswith(f"{DISCRIMINATOR}.") for name in source.tensors)


def _networks(source: Source, own: Sequence[str], pixels: bool) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Return the networks in a file, by their names in the codec stages, and a description of the file.

    Args:
        source: the file.
        own: further names to look up in a checkpoint.
        pixels: of two code predictors, use the one for latents of coded images.
    """
    if TrainingLabel.MARK in source.metadata:
        found = {name: strip_prefix(source.tensors, name) for name in TRAINING_NETWORKS}
        broken = [key for key, tensor in source.tensors.items() if not tensor.isfinite().all()]
        if broken or not any(found.values()):
            raise WeightsError(
                f"{source.path}: corrupt training weights: "
                + (f"{broken[0]} has non-finite values" if broken else "no known network")
            )
        return {name: state for name, state in found.items() if state}, "The file holds training weights"
    if source.checkpoint is not None:
        state = source.checkpoint.state_dict
        found = {name: strip_prefix(state, name) for name in (*NETWORKS, *own)}
        for codec_name, vqvae_name in NETWORKS.items():
            if not found[codec_name] and vqvae_name is not None:
                found[codec_name] = strip_prefix(state, vqvae_name)
        untrained = "quantizer.initialized" in state and not state["quantizer.initialized"]
        if untrained and strip_prefix(state, "model"):
            found["quantizer"] = {}  # a run without code prediction never trained it
        return _completed(found), _trained_model(source.checkpoint)
    published, title = foreign_networks(source)
    predictor = published.pop("pixel_predictor", None)
    if pixels and predictor is not None:
        published["predictor"] = predictor
    return _completed(
        {_PUBLISHED[name]: weights for name, weights in published.items()}
    ), f"The file is {title}"


def _completed(found: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Return the networks found; C and CP are taken from the refiner if the file has them only there."""
    refiner = found.get("model.refiner", {})
    for name, inside in (("quantizer", "quantizer"), ("code_loss.predictor", "predictor")):
        if not found.get(name):
            found[name] = strip_prefix(refiner, inside)
    return {name: weights for name, weights in found.items() if weights}


def _fitting(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the weights, with refinement blocks added if the decoder has them and the file does not."""
    if isinstance(network, Decoder) and network.fine_blocks and len(weights) < len(network.state_dict()):
        with suppress(KeyError, RuntimeError):  # of another decoder: the difference is reported later
            return network.inflate(weights)
    return weights
