"""Rebuild a trained stage from its checkpoint in Python, without Hydra.

```
stage = VQVAEStage.load_from_checkpoint("runs/mine/vqvae/checkpoints/last.ckpt")
stage = glc.training.load_stage("runs/mine/joint")  # any class
```

A checkpoint names the classes to build and may come from an untrusted source. Therefore only classes and
functions of glc and classes of torch are called; other packages must be trusted by name.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from glc.codec.weights.export import codec_of
from glc.codec.weights.trust import build_nested, import_from, trusted_prefixes
from glc.errors import ArchitectureError, WeightsError
from glc.io.checkpoint import Checkpoint, open_checkpoint
from glc.losses.reconstruction import load_perceptual
from glc.training.checkpoints import open_last

_BUILT = (
    *("glc.data.degradations", "glc.layers", "glc.losses", "glc.metrics", "glc.models"),
    *("glc.training.optimization", "glc.training.schedule", "glc.training.stages"),
    *("torch.nn", "torch.optim"),
)
"""Packages whose classes (of glc also functions) a checkpoint may name. None of them writes a file."""


def load_stage(
    source: str | Path | Checkpoint, trust: str | Sequence[str] = (), **given: Any
) -> L.LightningModule:
    """Return a trained stage with its weights (the EMA weights where it has them), in evaluation mode.

    If the weights of the perceptual network are unavailable, the stage has no term `lpips`; this is logged.
    The codec of stage=restoration, stage=stylization or stage=gate is loaded from the run's `init_from`.

    Args:
        source: a checkpoint or the folder of a run.
        trust: packages besides glc and torch whose classes the checkpoint may name. Building them runs their
            code.
        **given: constructor arguments of the stage that replace the recorded ones, such as `codec`.

    Raises:
        WeightsError: the checkpoint cannot be read, names an untrusted class, or does not fit the stage.
    """
    checkpoint = _opened(source)
    module = checkpoint.settings.get("stage", {}).get("module")
    if not isinstance(module, Mapping) or "_target_" not in module:
        raise WeightsError(
            f"{checkpoint.path}: its settings have no stage.module._target_, the class of the stage"
        )
    arguments = {key: value for key, value in module.items() if key not in ("codec", *given)}
    if "part" in checkpoint.content["glc"] and "codec" not in given:
        given = {**given, "codec": codec_of(checkpoint)}
    packages = (*_BUILT, *trusted_prefixes(trust))
    make = partial(_make, checkpoint.path, packages)
    stage = build_nested({**arguments, "_partial_": True}, make)(**given)
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
        raise WeightsError(f"{source}: no checkpoints found; give a checkpoint or the folder of a run")
    return found


def _make(path: Path, packages: Sequence[str], name: Any, values: dict[str, Any]) -> Any:
    """Call the class or function of a name in an allowed package, or bind its arguments (`_partial_`)."""
    package = str(name).partition(".")[0]
    if not any(f"{name}.".startswith(f"{allowed}.") for allowed in packages):
        raise WeightsError(
            f"{path}: names {name}, which loading would run; if you trust {package!r}, pass trust={package!r}"
        )

    def accepts(found: Any) -> bool:
        return inspect.isclass(found) or (inspect.isfunction(found) and package != "torch")

    try:
        target = import_from(str(name), packages, accepts, f"a class that {package!r} defines")
    except ArchitectureError as error:
        raise WeightsError(f"{path}: {error}") from error
    bind, positional = values.pop("_partial_", False), values.pop("_args_", [])
    if target is load_perceptual:
        values["required"] = False
    return partial(target, *positional, **values) if bind else target(*positional, **values)
