"""Generative Latent Coding: an image codec that transform-codes the latent of a generative VQ-VAE.

```
codec = glc.load("model.safetensors")
data = codec.compress(image, quality=50)  # bytes of a .glc file
image = codec.decompress(data)
```

The codec runs on ONNX Runtime, or on PyTorch where that is installed (`glc.codec.load`). Training is in
`glc.training`, which the codec does not import.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glc.codec.base import BaseCodec, TargetWarning
    from glc.codec.codec import Codec
    from glc.codec.entropy.symbols import Symbols
    from glc.codec.load import load
    from glc.codec.weights.catalog import decoders, encoders
    from glc.errors import (
        BackendError,
        BitstreamError,
        CorruptFileError,
        ImageError,
        NewerVersionError,
        NotGlcError,
        SizeLimitError,
        TargetError,
        TruncatedError,
        WeightsError,
        WrongWeightsError,
    )

__version__ = "0.2.0.dev0"

_HOMES = {
    "BackendError": "errors",
    "BaseCodec": "codec.base",
    "BitstreamError": "errors",
    "Codec": "codec.codec",
    "CorruptFileError": "errors",
    "ImageError": "errors",
    "NewerVersionError": "errors",
    "NotGlcError": "errors",
    "SizeLimitError": "errors",
    "Symbols": "codec.entropy.symbols",
    "TargetError": "errors",
    "TargetWarning": "codec.base",
    "TruncatedError": "errors",
    "WeightsError": "errors",
    "WrongWeightsError": "errors",
    "decoders": "codec.weights.catalog",
    "encoders": "codec.weights.catalog",
    "load": "codec.load",
}

__all__ = [
    "BackendError",
    "BaseCodec",
    "BitstreamError",
    "Codec",
    "CorruptFileError",
    "ImageError",
    "NewerVersionError",
    "NotGlcError",
    "SizeLimitError",
    "Symbols",
    "TargetError",
    "TargetWarning",
    "TruncatedError",
    "WeightsError",
    "WrongWeightsError",
    "decoders",
    "encoders",
    "load",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: `import glc` and `glc --help` do not import torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        text = f"glc.{name} needs PyTorch: pip install 'glc-codec[torch]'"
        raise ModuleNotFoundError(text, name="torch") from error
