"""Rebuild a trained stage from its checkpoint, in Python, without Hydra.

```
stage = VQVAEStage.load_from_checkpoint("runs/mine/vqvae/checkpoints/last.ckpt")
stage = glc.training.load_stage("runs/mine/joint")  # of whatever class
```

A checkpoint names the classes that it needs, and may come from anywhere. So only glc's own classes and
functions and torch's classes are called; other packages must be trusted by name.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L

from glc.codec.weights.export import read_codec
from glc.errors import WeightsError
from glc.io.checkpoint import Checkpoint, open_checkpoint
from glc.losses.reconstruction import load_perceptual
from glc.training.checkpoints import open_last

_BUILT = (
    *("glc.data.degradations", "glc.layers", "glc.losses", "glc.metrics", "glc.models"),
    *("glc.training.optimization", "glc.training.schedule", "glc.training.stages"),
    *("torch.nn", "torch.optim"),
)
"""Packages whose classes, and of glc also functions, a checkpoint may name: none of them writes a file."""


def load_stage(
    source: str | Path | Checkpoint, trust: str | Sequence[str] = (), **given: Any
) -> L.LightningModule:
    """Return a trained stage with its weights (the EMA weights where it has them), in evaluation mode.

    Without the weights of a perceptual network at hand, a stage comes without the term `lpips`; a line in the
    log says so. The codec of stage=restoration or stage=stylization is found where the run found it.

    Args:
        source: a checkpoint or the folder of a run.
        trust: packages besides glc and torch whose classes the checkpoint may name. Building them runs their
            code.
        **given: constructor arguments of the stage that replace the recorded ones, such as `codec`.

    Raises:
        WeightsError: the checkpoint cannot be read, names what is not trusted, or does not fit the stage.
    """
    checkpoint = _opened(source)
    module = checkpoint.settings.get("stage", {}).get("module")
    if not isinstance(module, Mapping) or "_target_" not in module:
        raise WeightsError(f"{checkpoint.path}: does not say which class its stage is")
    arguments = {key: value for key, value in module.items() if key not in ("codec", *given)}
    if "part" in checkpoint.content["glc"] and "codec" not in given:
        given = {**given, "codec": _codec(checkpoint)}
    packages = (*_BUILT, *([trust] if isinstance(trust, str) else trust))
    stage = _build(checkpoint.path, {**arguments, "_partial_": True}, packages)(**given)
    if not isinstance(stage, L.LightningModule):
        raise WeightsError(f"{checkpoint.path}: its stage is a {type(stage).__name__}, not a LightningModule")
    try:
        stage.load_state_dict(checkpoint.state_dict)
    except RuntimeError as error:
        raise WeightsError(f"{checkpoint.path}: {' '.join(str(error).split())}") from error
    return stage.eval()


def _opened(source: str | Path | Checkpoint) -> Checkpoint:
    if isinstance(source, Checkpoint) or not Path(source).is_dir():
        return open_checkpoint(source)
    found = open_last(Path(source) / "checkpoints") or open_last(Path(source))
    if found is None:
        raise WeightsError(f"{source}: has no checkpoints; give a checkpoint or the folder of a run")
    return found


def _codec(checkpoint: Checkpoint) -> Any:
    """Return the codec that a stage was trained for, from where `init_from` found it."""
    named = checkpoint.settings.get("init_from")
    problem = "was made for a codec of its own run"
    if isinstance(named, str):
        codec = read_codec(named)
        if codec.fingerprint == checkpoint.content["glc"]["part"].get("fingerprint"):
            return codec
        problem = f"was made for another codec than {named} is now"
    raise WeightsError(f"{checkpoint.path}: {problem}; give it as codec=read_codec(FILE)")


def _build(path: Path, node: Any, packages: Sequence[str]) -> Any:
    """Make the objects that nested settings name under `_target_`, innermost first."""
    if isinstance(node, list):
        return [_build(path, item, packages) for item in node]
    if not isinstance(node, Mapping):
        return node
    raw = node.get("_recursive_") is False
    values = {
        key: value if raw else _build(path, value, packages)
        for key, value in node.items()
        if key not in _DIRECTIVES
    }
    if "_target_" not in node:
        return values
    target = _find(path, node["_target_"], packages)
    if target is load_perceptual:
        values["required"] = False
    positional = [_build(path, value, packages) for value in node.get("_args_", [])]
    return partial(target, *positional, **values) if node.get("_partial_") else target(*positional, **values)


_DIRECTIVES = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


def _find(path: Path, name: Any, packages: Sequence[str]) -> Any:
    """Return the class or function of a name, from the packages that may be named."""
    package = str(name).partition(".")[0]
    if not _below(str(name), packages):
        raise WeightsError(
            f"{path}: names {name}, which loading it would run; if you trust {package!r}, "
            f"give trust={package!r}"
        )
    try:
        found = resolve_name(str(name))
    except (ImportError, AttributeError, ValueError) as error:
        raise WeightsError(f"{path}: names {name}, which cannot be imported ({error})") from error
    # A module also holds what it imported itself, such as `os`.
    kind = inspect.isclass(found) or (inspect.isfunction(found) and package != "torch")
    if not kind or not _below(f"{found.__module__}.{found.__qualname__}", packages):
        raise WeightsError(f"{path}: names {name}, which is not a class that {package!r} defines")
    return found


def _below(name: str, packages: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)
