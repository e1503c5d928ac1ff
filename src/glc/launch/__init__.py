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

from glc.launch.config import UsageError
from glc.launch.overrides import compose

__all__ = ["UsageError", "compose"]
