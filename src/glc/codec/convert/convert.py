"""Convert third-party checkpoints to weights files of glc, and codecs of glc to the authors' layout."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glc.codec.convert.detect import AUTOENCODER, CODEC, KINDS, ThirdPartyFile, own_description, recognize
from glc.codec.convert.layouts import LAYOUTS, FittedLayout, codec_description
from glc.codec.convert.read import Source, open_source
from glc.codec.weights.export import counted_tables, export, model_from_checkpoint, rate_points
from glc.codec.weights.file import build_model, read_weights, save, save_weights
from glc.codec.weights.labels import AutoencoderLabel
from glc.codec.weights.state import strip_prefix
from glc.errors import WeightsError
from glc.io.atomic import check_destination, replacing
from glc.io.checkpoint import Checkpoint
from glc.models.quantizer import VectorQuantizer

LIGHTNING = "lightning"
"""Kind of glc's own training checkpoints."""
CODEC_NETWORKS = ("encoder", "decoder", "coder")

_MEANING = {
    "quantizer": "stage I's codebook C, needed in training only",
    "predictor": "the code predictor of decoded latents, needed in training only",
    "pixel_predictor": "the code predictor of images, needed in training only",
}


def convert(
    source: str | Path,
    destination: str | Path,
    kind: str = "auto",
    force: bool = False,
    images: Iterable[str | Path] = (),
) -> list[str]:
    """Convert a third-party checkpoint, or one of glc's training, to a safetensors file of glc.

    A GLC image model becomes a codec's weights file. A VQGAN becomes a stage-I autoencoder for `init_from=`
    of the training stages. The file is written atomically.

    Args:
        source: a checkpoint, a safetensors file, or the folder of a training run of glc.
        kind: `auto`, one of `glc.codec.convert.detect.KINDS`, or `lightning` for glc's own checkpoints.
        images: on which to count the indices of a codec's hyper-latent, see
            `glc.codec.weights.export.make_tables`.

    Returns:
        Lines for the user: what was found, used, omitted and written.

    Raises:
        WeightsError: the source cannot be converted; nothing is written.
        ImageError: an image cannot be read; nothing is written.
        FileExistsError: `destination` exists and `force` is not set.
    """
    source, destination = _checkpoint_of(Path(source)), Path(destination)
    check_destination(destination, source, force)
    opened = open_source(source)
    if opened.ours and kind in ("auto", LIGHTNING):
        export(opened.path, destination, photos=images)
        found = f"{opened.path}: a training checkpoint of glc; everything but the codec was omitted"
        return [found, _written(destination, "a codec")]
    if opened.ours or kind == LIGHTNING:
        verb = "is" if opened.ours else "is not"
        raise WeightsError(f"{opened.path}: {verb} a training checkpoint of glc, contrary to --kind {kind}")
    if own_description(opened) is not None:
        raise WeightsError(
            f"{opened.path}: already a weights file of glc; for the authors' layout, give --to glc"
        )
    recognized = recognize(opened, kind)
    if recognized.layout.table.kind == "glc":
        used, what = list(CODEC_NETWORKS), "a codec"
        _write_codec(recognized, destination, images)
    else:
        if any(True for _ in images):
            raise WeightsError(f"{opened.path}: not a codec, which --images is for; omit it")
        used, what = recognized.networks, "a stage-I autoencoder, for init_from="
        _write_autoencoder(recognized, destination)
    return [*_describe(recognized, used), _written(destination, what)]


def _write_codec(recognized: ThirdPartyFile, destination: Path, images: Iterable[str | Path]) -> None:
    description, path = codec_description(recognized.layout.descriptions), recognized.source.path
    state = _joined(recognized.states(CODEC_NETWORKS))
    with torch.device("meta"):
        model = build_model(path, description)
    model.load_state_dict(state, assign=True)
    tables = counted_tables(path, model.eval(), images)
    save_weights(destination, state, description, tables, rate_points(model))


def _write_autoencoder(recognized: ThirdPartyFile, destination: Path) -> None:
    label = AutoencoderLabel(
        {"_target_": AUTOENCODER, **dict(recognized.layout.descriptions)}, recognized.layout.table.title
    )
    save(destination, _joined(recognized.states()), label)


def convert_to_official(
    source: str | Path, destination: str | Path, sizes: Mapping[str, int] | None = None, force: bool = False
) -> list[str]:
    """Convert a codec of model=natural to the authors' layout: a dictionary of tensors.

    A weights file holds the networks of compression and decompression. A training checkpoint also has C and
    the code predictor, which the authors' code loads; its layout stores the predictor under two names.

    Args:
        source: a codec's weights file, or a checkpoint of stage II or III (or the folder of its run).
        sizes: of the model; by default those of the released one, which the authors' code requires.

    Returns:
        Lines for the user: what was found, omitted and written.

    Raises:
        WeightsError: the source is not a codec, or has another architecture; nothing is written.
        FileExistsError: `destination` exists and `force` is not set.
    """
    path, destination = _checkpoint_of(Path(source)), Path(destination)
    check_destination(destination, path, force)
    description, states = _our_networks(open_source(path))
    layout = LAYOUTS["glc"].fit(**(sizes or {}))
    problem = _unlike(description, states, layout)
    if problem:
        raise WeightsError(
            f"{path}: only codecs with the architecture of model=natural fit the authors' layout: {problem}"
        )
    tensors = {name: t.contiguous() for name, t in layout.from_networks(states).items()}
    with replacing(destination) as partial:
        torch.save(tensors, partial)
    lines = [f"{path}: a codec of glc, {_count(states.values())}"]
    missing = [name for name in layout.descriptions if name not in states]
    lines += [f"omitted: {name} ({_MEANING[name]}): not in a codec's weights file" for name in missing]
    if missing:
        lines.append(
            "the authors' code needs strict=False to load it; a training checkpoint has all networks"
        )
    return [*lines, _written(destination, layout.table.title)]


def _our_networks(source: Source) -> tuple[Mapping[str, Any], dict[str, dict[str, Tensor]]]:
    """Return the architecture of a codec of glc and the state dicts of its networks, in float32."""
    if source.checkpoint is not None:
        model, described, _ = model_from_checkpoint(source.checkpoint)
        extra = _training_networks(source.checkpoint)
    else:
        if (own_description(source) or {}).get("_target_") != CODEC:
            raise WeightsError(
                f"{source.path}: neither a codec's weights file nor a training checkpoint of glc"
            )
        weights = read_weights(source.path)
        model, described, extra = weights.model, dict(weights.description), {}
    state = model.state_dict()
    names = dict.fromkeys(name.partition(".")[0] for name in state)
    return described, {**{name: strip_prefix(state, name) for name in names}, **extra}


def _training_networks(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """Return C and the code predictor of a training checkpoint, the predictor under both of its names."""
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
    """Describe how a model differs from that of the layout; empty if it does not."""
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


def _describe(recognized: ThirdPartyFile, used: list[str]) -> list[str]:
    source, layout = recognized.source, recognized.layout
    place = f", in {source.inside}" if source.inside else ""
    lines = [f"{source.path}: {layout.table.title}, {len(source.tensors)} tensors{place}"]
    for name in recognized.networks:
        tensors = [source.tensors[e.official] for e in layout.entries.values() if e.network == name]
        meaning = f" ({_MEANING[name]})" if name not in used else ""
        lines.append(
            f"{'used' if name in used else 'omitted'}: {name}, {len(tensors)} tensors, "
            f"{sum(t.numel() for t in tensors) / 1e6:.2f} M parameters{meaning}"
        )
    absent = [name for name in layout.descriptions if name not in recognized.networks]
    lines += [f"not in the file: {name} ({_MEANING[name]})" for name in absent]
    for start in layout.table.ignored:
        count = sum(name.startswith(start) for name in recognized.ignored)
        if count:
            lines.append(f"omitted: {count} tensors {start}* (training only)")
    return lines


def _written(destination: Path, what: str) -> str:
    return f"{destination}: {what}, {destination.stat().st_size / 1e6:.1f} MB"


def _count(states: Any) -> str:
    unique = {tensor.data_ptr(): tensor.numel() for state in states for tensor in state.values()}
    return f"{sum(unique.values()) / 1e6:.2f} M parameters"


def _joined(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{network}.{name}": t for network, state in states.items() for name, t in state.items()}


def _checkpoint_of(source: Path) -> Path:
    """Return the last checkpoint of a run's folder; other paths are returned unchanged."""
    return source / "checkpoints" / "last.ckpt" if source.is_dir() else source


__all__ = ["CODEC_NETWORKS", "KINDS", "LIGHTNING", "convert", "convert_to_official"]
