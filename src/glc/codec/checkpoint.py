"""Reading training checkpoints, which may come from anywhere, without executing anything in them."""

from pathlib import Path
from typing import Any

import torch

from glc.codec.errors import WeightsError
from glc.codec.seal import check_seal

CHECKPOINT_FORMAT = 1
"""Version of what glc's training adds to a checkpoint under the key `glc`."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint without executing anything in it.

    Raises:
        WeightsError: when it is missing, has another checksum than it states, is no checkpoint of glc's
            training, or is of a newer format.
    """
    try:
        check_seal(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such checkpoint") from None
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"{path}: not a checkpoint that can be read safely ({error})") from error
    ours = checkpoint.get("glc") if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or not isinstance(newest := ours.get("format"), int):
        raise WeightsError(f"{path}: not a checkpoint of glc's training")
    if newest > CHECKPOINT_FORMAT:
        raise WeightsError(f"{path}: format {newest} is newer than this glc reads ({CHECKPOINT_FORMAT})")
    if not isinstance(ours.get("recipe"), dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise WeightsError(f"{path}: a damaged checkpoint, without its recipe or its weights")
    return checkpoint
