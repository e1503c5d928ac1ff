"""Load a codec with PyTorch or with ONNX Runtime."""

from pathlib import Path
from typing import TYPE_CHECKING, Union

from glc.codec.base import BaseCodec
from glc.codec.weights.catalog import DEFAULT_MODEL
from glc.codec.weights.trust import Trust

if TYPE_CHECKING:
    import torch


def load(
    model: str | Path = DEFAULT_MODEL,
    device: Union[str, "torch.device"] = "auto",
    *,
    encoder: str | Path | None = None,
    decoder: str | Path | None = None,
    precision: str = "auto",
    memory: int | str | None = None,
    trust: Trust = (),
) -> BaseCodec:
    """Return the codec of a weights file or of a bundled model; see `glc.codec.codec.load`."""
    from glc.codec.codec import load as load_with_torch

    given = {"encoder": encoder, "decoder": decoder, "precision": precision, "memory": memory, "trust": trust}
    return load_with_torch(model, device, **given)  # type: ignore[arg-type]
