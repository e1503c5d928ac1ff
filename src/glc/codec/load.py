"""Load a codec with PyTorch or with ONNX Runtime.

| backend | what it runs                                                                | needs              |
|---------|-----------------------------------------------------------------------------|--------------------|
| `torch` | all networks, on CPUs and GPUs; on a CPU in row tiles, with little memory   | `glc-codec[torch]` |
| `onnx`  | networks of glc, on a CPU, each image as a whole; starts in half a second   | the core package   |

Both write and read the same files. `choose_backend` has the rule for `auto`.
"""

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from glc.codec.base import BaseCodec
from glc.codec.weights.catalog import DEFAULT_MODEL, find
from glc.codec.weights.trust import Trust
from glc.errors import WeightsError

if TYPE_CHECKING:
    import torch

BACKENDS = ("auto", "torch", "onnx")
FEW_FILES = 16
"""Files for which starting PyTorch takes longer than it saves, see docs/performance.md."""
FEW_PIXELS = 1 << 22
"""Pixels above which the backend `onnx` needs gigabytes of memory."""
_HINT = "pip install 'glc-codec[torch]'"


def has_torch() -> bool:
    """Whether PyTorch is installed; does not import it."""
    if "torch" in sys.modules:
        return sys.modules["torch"] is not None
    return find_spec("torch") is not None


def choose_backend(backend: str = "auto", files: int | None = None, pixels: int = 0) -> str:
    """Return `torch` or `onnx`.

    `auto` is `onnx` where PyTorch is not installed, and for a command on at most `FEW_FILES` images of at
    most `FEW_PIXELS` pixels each, unless PyTorch is already imported; otherwise it is `torch`.

    Args:
        backend: one of `BACKENDS`.
        files: number of images of the command; None for a process that may live long, as in Python.
        pixels: size of the image.

    Raises:
        ValueError: the name is unknown.
        ModuleNotFoundError: PyTorch is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}, got {backend!r}")
    if backend == "torch" and not has_torch():
        raise ModuleNotFoundError(f"the backend torch needs PyTorch: {_HINT}", name="torch")
    if backend != "auto":
        return backend
    if not has_torch():
        return "onnx"
    few = files is not None and files <= FEW_FILES and pixels <= FEW_PIXELS
    return "onnx" if few and "torch" not in sys.modules else "torch"


def load(
    model: str | Path = DEFAULT_MODEL,
    device: Union[str, "torch.device"] = "auto",
    *,
    backend: str = "auto",
    encoder: str | Path | None = None,
    decoder: str | Path | None = None,
    precision: str = "auto",
    memory: int | str | None = None,
    trust: Trust = (),
) -> BaseCodec:
    """Return the codec of a weights file or of a bundled model.

    Args:
        model: a file, or a name (`glc models` lists them), by default the bundled codec; or a checkpoint of
            stage II or III, or the folder of its run, for the codec that `glc export` would make of it.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        backend: "torch", "onnx", or "auto" for PyTorch where it is installed.
        encoder: file or name of an encoder variant for this model (restoration, for example) to compress
            with.
        decoder: file or name of a decoder variant (stylization, for example) to decompress with.
        precision: "auto", "float32" or "bfloat16" for E and D; any precision reads any file.
        memory: memory limit in bytes or as text such as "8GB"; None for the available memory.
        trust: a package, or several, whose networks the files may name: importing it runs its code, see
            `glc.codec.weights.trust`. Such networks need PyTorch.

    Raises:
        WeightsError: the model does not exist, its file cannot be used or names networks of a package that is
            not trusted, or the encoder or decoder was made for another model. A `BackendError` if it needs
            the backend torch.
        ValueError: the device is not available, or the backend, precision or memory limit is invalid.
        ModuleNotFoundError: PyTorch is not installed.
    """
    named: dict[str, Any] = {"encoder": encoder, "decoder": decoder}
    options: dict[str, Any] = {"precision": precision, "memory": memory}
    codec: BaseCodec
    if choose_backend(backend) == "onnx":
        from glc.codec.onnx.codec import load_onnx

        if str(device) not in ("auto", "cpu"):
            raise ValueError(f"device {str(device)!r}: the backend onnx runs on the CPU; use torch ({_HINT})")
        codec = load_onnx(model, **named, **options)
    else:
        from glc.codec.codec import load as load_with_torch

        options["trust"] = trust if isinstance(trust, str) else tuple(trust)
        codec = load_with_torch(model, device, **named, **options)
    trained = Path(model).suffix == ".ckpt" or Path(model).is_dir()
    file = (Path(model) if trained else find(model)).resolve()
    options |= {kind: name and find(name, kind).resolve() for kind, name in named.items()}
    codec.load_again = partial(
        _again, codec.fingerprint, file, codec.device, backend=codec.backend, **options
    )
    return codec


def _again(fingerprint: bytes, file: Path, device: Any, **options: Any) -> BaseCodec:
    codec = load(file, device, **options)
    if codec.fingerprint != fingerprint:
        raise WeightsError(f"{file}: holds another codec than when the codec was pickled")
    return codec
