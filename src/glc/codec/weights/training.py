"""The companion of a codec's weights file: what training needs besides, so that others can go on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from glc.errors import WeightsError
from glc.io.atomic import replacing
from glc.io.checkpoint import read_checkpoint

KEY = "glc_training"
"""Key in the file's metadata; its value is JSON: the networks, and the digest of the codec's D."""
NETWORKS = {
    "quantizer": "C",
    "code_loss.predictor": "the code predictor",
    "vq_encoder": "E_VQ",
    "adversarial.discriminator": "the discriminator",
}
"""Networks by their names in stages II and III, which are those of the tensors too, and what they are."""


def export_companion(checkpoint: str | Path, destination: str | Path, half: bool = False) -> list[str]:
    """Write the networks of a training checkpoint that its codec's weights file leaves out.

    Both together give `init_from=[CODEC,COMPANION]` what the checkpoint would, but its optimizers. Of stage
    III it is all of `NETWORKS`, of stage II C and the code predictor. A C that was never trained is left
    out, and a projected one becomes plain, as in a weights file. The file is written under another name and
    renamed when it is whole.

    Args:
        checkpoint: of stage II or III.
        destination: the safetensors file.
        half: store the weights in half precision.

    Returns:
        What is in it, in words.

    Raises:
        WeightsError: when the checkpoint has no codec, or nothing beside it, or a weight does not fit half
            precision.
    """
    state = read_checkpoint(checkpoint)["state_dict"]
    decoder = {key.removeprefix(_D): tensor for key, tensor in state.items() if key.startswith(_D)}
    networks = [name for name in NETWORKS if any(key.startswith(f"{name}.") for key in state)]
    if "quantizer" in networks and not state["quantizer.initialized"]:
        networks.remove("quantizer")
    if not networks or not decoder:
        raise WeightsError(
            f"{checkpoint}: holds no codec with networks of its training beside it; give a checkpoint of "
            "stage=transform or stage=joint"
        )
    kept = tuple(f"{name}." for name in networks)
    tensors = _plain({key: tensor for key, tensor in state.items() if key.startswith(kept)})
    if half:
        tensors = {key: t.half() if t.is_floating_point() else t for key, t in tensors.items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            reason = "does not fit half precision; export without --half" if half else "is not finite"
            raise WeightsError(f"{checkpoint}: {key} {reason}")
    words = [NETWORKS[name] for name in networks]
    metadata = {
        KEY: json.dumps({"networks": networks, "decoder": digest(decoder)}),
        "content": f"{', '.join(words)}: what training needs besides the codec, for init_from=[CODEC,FILE]",
    }
    with replacing(Path(destination)) as partial:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial, metadata)
    return words


_D = "model.decoder."


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with a projected C as a plain one; see `VectorQuantizer.fold`."""
    weight = tensors.pop("quantizer.projection.weight", None)
    bias = tensors.pop("quantizer.projection.bias", None)
    if weight is not None:
        tensors["quantizer.embedding"] = F.linear(tensors["quantizer.embedding"], weight, bias)
    return tensors


def digest(decoder: Mapping[str, Tensor]) -> str:
    """Return a digest of D's weights in half precision, the same for a codec exported with or without it."""
    found = hashlib.sha256()
    for name in sorted(decoder):
        found.update(name.encode())
        found.update(decoder[name].detach().cpu().half().contiguous().numpy().data)
    return found.hexdigest()


def codec_of(path: str | Path) -> str | None:
    """Return the digest of the D that a companion was written beside; None of any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads((file.metadata() or {})[KEY])["decoder"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
