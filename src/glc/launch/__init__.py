"""Compose a configuration, then train or evaluate; the only package that imports Hydra.

```
from glc.launch import compose
from glc.launch.train import train
from glc.launch.evaluate import evaluate

result = train(compose("train", ["stage=vqvae", "model=tiny", "data=folder", "data.train=A", "data.val=B"]))
result.folder, result.checkpoint, result.metrics
(summary,) = evaluate(compose("evaluate", ["codec=small", "testset.path=IMAGES", "out=RESULTS"]))
```

`glc train` and `glc eval` do the same from the command line. `train` needs the extra `train`, `evaluate` the
extra `eval`; neither is imported with this package.
"""

from typing import TYPE_CHECKING, Any

from glc.launch.config import UsageError

if TYPE_CHECKING:
    from glc.launch.overrides import compose

__all__ = ["UsageError", "compose"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the help of a command does not import Hydra.
    if name != "compose":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from glc.launch.overrides import compose

    return compose
