"""The kinds of models that a codec may have, as fixed weights files."""

from functools import cache
from pathlib import Path
from typing import Any

import glc
from tests.codec.fixed_model import fixed_codec_weights

VARIANTS: dict[str, dict[str, Any]] = {
    "categorical": {},
    "z_table": {"z": "one"},
    "z_rates": {"z": "rates"},
    "factorized": {"hyper": "factorized"},
    "gate": {"gate": True},
    "fsq": {"fsq": True},
    "indices_map": {"coder": "indices_map"},
}
WITH_Y = ["categorical", "z_table", "z_rates", "factorized", "gate", "fsq"]
"""Those that transform the latent."""


class Variants:
    """Weights files and codecs in a folder, each made when it is asked for first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.codec = cache(lambda variant, seed=0: glc.load(self.weights(variant, seed), "cpu"))

    def weights(self, variant: str, seed: int = 0) -> Path:
        """Return the weights file of a variant, to be read only."""
        path = self.folder / f"{variant}{seed}.safetensors"
        return path if path.exists() else fixed_codec_weights(path, seed=seed, **VARIANTS[variant])
