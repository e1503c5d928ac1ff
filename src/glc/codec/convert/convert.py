"""From a published file to one of ours, and from one of ours to the authors' layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glc.codec.convert.detect import AUTOENCODER, CODEC, KINDS, Published, own_description, recognize
from glc.codec.convert.layouts import LAYOUTS, FittedLayout, codec_description
from glc.codec.convert.read import Source, open_source
from glc.codec.weights.export import export, make_tables, model_from_checkpoint, rate_points
from glc.codec.weights.file import AutoencoderLabel, build_model, read_weights, save, save_weights
from glc.codec.weights.state import strip_prefix
from glc.errors import WeightsError
from glc.io.atomic import check_destination, replacing
from glc.io.checkpoint import Checkpoint
from glc.models.quantizer import VectorQuantizer

LIGHTNING = "lightning"
"""Kind of the checkpoints of glc's own training."""
CODEC_NETWORKS = ("encoder", "decoder", "coder")

_MEANING = {
    "quantizer": "stage I's codebook C, needed in training only",
    "predictor": "the code predictor of coded latents, needed in training only",
    "pixel_predictor": "the code predictor of images, needed in training only",
}


def convert(
    source: str | Path, destination: str | Path, kind: str = "auto", force: bool = False
) -> list[str]:
    """Write a published checkpoint, or one of glc's training, as a safetensors file of glc.

    A GLC image model becomes a codec's weights file. A VQGAN becomes a stage-I auto-encoder, which training
    stages start from (`init_from=`). The file is written under another name and renamed when it is whole.

    Args:
        source: a checkpoint or a safetensors file; of glc's training also the folder of a run.
        destination: the file to write.
        kind: `auto`, one of `glc.codec.convert.detect.KINDS`, or `lightning` for glc's own.
        force: replace `destination` where it exists.

    Returns:
        What was found, used, left out and written, in lines for the user.

    Raises:
        WeightsError: when the source is not what it should be; nothing is written then.
        FileExistsError: when `destination` exists.
    """
    source, destination = _checkpoint_of(Path(source)), Path(destination)
    check_destination(destination, source, force)
    opened = open_source(source)
    if opened.ours and kind in ("auto", LIGHTNING):
        export(opened.path, destination)
        found = f"{opened.path}: a checkpoint of glc's training; what is not the codec was left out"
        return [found, _written(destination, "a codec")]
    if opened.ours or kind == LIGHTNING:
        verb = "is" if opened.ours else "is not"
        raise WeightsError(f"{opened.path}: {verb} a checkpoint of glc's training, contrary to --kind {kind}")
    if own_description(opened) is not None:
        raise WeightsError(
            f"{opened.path}: already a weights file of glc; to write it as the authors do, give --to glc"
        )
    published = recognize(opened, kind)
    if published.layout.table.kind == "glc":
        used, what = list(CODEC_NETWORKS), "a codec"
        _write_codec(published, destination)
    else:
        used, what = published.networks, "a stage-I auto-encoder, for init_from="
        _write_autoencoder(published, destination)
    return [*_describe(published, used), _written(destination, what)]


def _write_codec(published: Published, destination: Path) -> None:
    description = codec_description(published.layout.descriptions)
    states = published.states(CODEC_NETWORKS)
    with torch.device("meta"):  # the tables follow from the architecture alone
        model = build_model(published.source.path, description)
    save_weights(destination, _joined(states), description, make_tables(model), rate_points(model))


def _write_autoencoder(published: Published, destination: Path) -> None:
    label = AutoencoderLabel(
        {"_target_": AUTOENCODER, **dict(published.layout.descriptions)}, published.layout.table.title
    )
    save(destination, _joined(published.states()), label)


def convert_to_official(
    source: str | Path,
    destination: str | Path,
    sizes: Mapping[str, int] | None = None,
    force: bool = False,
) -> list[str]:
    """Write a natural codec of ours in the layout of the authors' image model: a dictionary of tensors.

    A weights file holds what compresses and decompresses. A checkpoint of glc's training also has C and the
    code predictor, which the authors' code wants to load; there, the one predictor has two names.

    Args:
        source: a codec's weights file, or a checkpoint of stage II or III (or the folder of a run).
        destination: the file to write, for `torch.load`.
        sizes: of the model, by default the released one's, the only ones that the authors' code takes.
        force: replace `destination` where it exists.

    Returns:
        What was found, left out and written, in lines for the user.

    Raises:
        WeightsError: when the source is no codec, or of another architecture; nothing is written then.
        FileExistsError: when `destination` exists.
    """
    path, destination = _checkpoint_of(Path(source)), Path(destination)
    check_destination(destination, path, force)
    description, states = _our_networks(open_source(path))
    layout = LAYOUTS["glc"].fit(**(sizes or {}))
    problem = _unlike(description, states, layout)
    if problem:
        raise WeightsError(
            f"{path}: only a codec of the architecture of model=natural has a place in the authors' layout: "
            f"{problem}"
        )
    tensors = {name: t.contiguous() for name, t in layout.from_networks(states).items()}
    with replacing(destination) as partial:
        torch.save(tensors, partial)
    lines = [f"{path}: a codec of glc, {_count(states.values())}"]
    missing = [name for name in layout.descriptions if name not in states]
    lines += [f"left out: {name} ({_MEANING[name]}): not in a codec's weights file" for name in missing]
    if missing:
        lines.append("the authors' code loads it with strict=False only; a training checkpoint has all of it")
    return [*lines, _written(destination, layout.table.title)]


def _our_networks(source: Source) -> tuple[Mapping[str, Any], dict[str, dict[str, Tensor]]]:
    """Return the architecture and the networks of a codec of ours, in float32."""
    if source.checkpoint is not None:
        model, described, _ = model_from_checkpoint(source.checkpoint)
        extra = _training_networks(source.checkpoint)
    else:
        if (own_description(source) or {}).get("_target_") != CODEC:
            raise WeightsError(f"{source.path}: neither a codec's weights nor a checkpoint of glc's training")
        weights = read_weights(source.path)
        model, described, extra = weights.model, dict(weights.description), {}
    state = model.state_dict()
    names = dict.fromkeys(name.partition(".")[0] for name in state)
    return described, {**{name: strip_prefix(state, name) for name in names}, **extra}


def _training_networks(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """Return C and the code predictor of a training checkpoint, the latter for both of the authors' names."""
    state = checkpoint.state_dict
    networks = {}
    quantizer = strip_prefix(state, "quantizer")
    if quantizer:
        networks["quantizer"] = VectorQuantizer.baked(quantizer)
    predictor = strip_prefix(state, "code_loss.predictor")
    if predictor:
        networks |= {"predictor": predictor, "pixel_predictor": predictor}
    return networks


def _unlike(
    description: Mapping[str, Any], states: Mapping[str, Mapping[str, Tensor]], layout: FittedLayout
) -> str:
    """Say how a model differs from the one of the layout; empty when it does not."""
    flags = [
        f"its {part} has norm={description[part]['norm']}"
        for part in ("encoder", "decoder")
        if description[part].get("norm", "group") != "group"
    ]
    if description["coder"].get("hyper", {}).get("normalize"):
        flags.append("it normalises z (normalize=True)")
    for part in ("encoder", "decoder"):
        want = layout.descriptions[part]["window"]
        have = description[part].get("window", 32)
        if have != want:
            flags.append(f"its {part} has window={'null' if have is None else have}, there {want}")
    if flags:
        return ", ".join(flags)
    for network in (*CODEC_NETWORKS, *(name for name in states if name not in CODEC_NETWORKS)):
        if network not in layout.descriptions:
            return f"it has a {network}"
        expected = {e.name: e.ours for e in layout.entries.values() if e.network == network}
        found = {name: tuple(t.shape) for name, t in states[network].items() if t.ndim}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                have, want = (list(s[name]) if name in s else "absent" for s in (found, expected))
                return f"{network}.{name} is {have}, there {want}"
    return ""


def _describe(published: Published, used: list[str]) -> list[str]:
    source, layout = published.source, published.layout
    place = f", in {source.inside}" if source.inside else ""
    lines = [f"{source.path}: {layout.table.title}, {len(source.tensors)} tensors{place}"]
    for name in published.networks:
        tensors = [source.tensors[e.official] for e in layout.entries.values() if e.network == name]
        meaning = f" ({_MEANING[name]})" if name not in used else ""
        lines.append(
            f"{'used' if name in used else 'left out'}: {name}, {len(tensors)} tensors, "
            f"{sum(t.numel() for t in tensors) / 1e6:.2f} M parameters{meaning}"
        )
    absent = [name for name in layout.descriptions if name not in published.networks]
    lines += [f"not in the file: {name} ({_MEANING[name]})" for name in absent]
    for start in layout.table.ignored:
        count = sum(name.startswith(start) for name in published.ignored)
        if count:
            lines.append(f"left out: {count} tensors {start}* (of their training)")
    return lines


def _written(destination: Path, what: str) -> str:
    return f"{destination}: {what}, {destination.stat().st_size / 1e6:.1f} MB"


def _count(states: Any) -> str:
    unique = {tensor.data_ptr(): tensor.numel() for state in states for tensor in state.values()}
    return f"{sum(unique.values()) / 1e6:.2f} M parameters"


def _joined(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{network}.{name}": t for network, state in states.items() for name, t in state.items()}


def _checkpoint_of(source: Path) -> Path:
    """Return the last checkpoint where the source is the folder of a run, else the source."""
    return source / "checkpoints" / "last.ckpt" if source.is_dir() else source


__all__ = ["CODEC_NETWORKS", "KINDS", "LIGHTNING", "convert", "convert_to_official"]
