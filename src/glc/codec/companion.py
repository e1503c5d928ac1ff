"""The companion of a codec's weights file: what training needs besides, so that others can go on."""

import json
from pathlib import Path

from safetensors.torch import save_file

from glc.codec.checkpoint import read_checkpoint
from glc.codec.errors import WeightsError
from glc.codec.writing import replacing

KEY = "training"
"""Key in the file's metadata; its value lists the networks."""
NETWORKS = {
    "quantizer": "C",
    "code_loss.predictor": "the code predictor",
    "vq_encoder": "E_VQ",
    "adversarial.discriminator": "the discriminator",
}
"""Networks by their names in stages II and III, which are those of the tensors too, and what they are."""


def export_companion(checkpoint: str | Path, destination: str | Path, half: bool = False) -> list[str]:
    """Write the networks of a training checkpoint that its codec's weights file leaves out.

    Both together give `init_from=[CODEC,COMPANION]` all that stages II and III start from. The file is
    written under another name and renamed when it is whole.

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
    found = [name for name in NETWORKS if any(key.startswith(f"{name}.") for key in state)]
    if not found or not any(key.startswith("model.") for key in state):
        raise WeightsError(
            f"{checkpoint}: holds no codec with networks of its training beside it; give a checkpoint of "
            "stage=transform or stage=joint"
        )
    tensors = {}
    for key, tensor in state.items():
        if not key.startswith(tuple(f"{name}." for name in found)):
            continue
        kept = tensor.half() if half and tensor.is_floating_point() else tensor
        if not kept.isfinite().all():
            raise WeightsError(f"{checkpoint}: {key} does not fit half precision; export without --half")
        tensors[key] = kept.contiguous()
    words = [NETWORKS[name] for name in found]
    metadata = {
        KEY: json.dumps(found),
        "content": f"{', '.join(words)}: what training needs besides the codec, for init_from=[CODEC,FILE]",
    }
    with replacing(Path(destination)) as partial:
        save_file(tensors, partial, metadata)
    return words
