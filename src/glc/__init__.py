"""Generative Latent Coding: an image codec that transform-codes the latent of a generative VQ-VAE.

```
codec = glc.load("model.safetensors")
data = codec.compress(image, quality=50)  # bytes of a .glc file
image = codec.decompress(data)
```

The library needs torch and an entropy coder only; training lives in `glc.training`, which nothing
else here imports.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glc.codec.codec import Codec, TargetWarning
    from glc.codec.errors import (
        BitstreamError,
        DamagedError,
        NewerVersionError,
        NotGlcError,
        SizeLimitError,
        TargetError,
        TruncatedError,
        WeightsError,
        WrongWeightsError,
    )
    from glc.codec.loading import load
    from glc.codec.parts import decoders, encoders
    from glc.codec.payload import Symbols
    from glc.data.images import ImageError

__version__ = "0.1.0"

_HOMES = {
    "BitstreamError": "codec.errors",
    "Codec": "codec.codec",
    "DamagedError": "codec.errors",
    "ImageError": "data.images",
    "NewerVersionError": "codec.errors",
    "NotGlcError": "codec.errors",
    "SizeLimitError": "codec.errors",
    "Symbols": "codec.payload",
    "TargetError": "codec.errors",
    "TargetWarning": "codec.codec",
    "TruncatedError": "codec.errors",
    "WeightsError": "codec.errors",
    "WrongWeightsError": "codec.errors",
    "decoders": "codec.parts",
    "encoders": "codec.parts",
    "load": "codec.loading",
}

__all__ = [
    "BitstreamError",
    "Codec",
    "DamagedError",
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
    # Imported when asked for: `import glc` and `glc --help` need not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
