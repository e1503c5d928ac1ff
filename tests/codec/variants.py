"""The kinds of models that a codec may have, as fixed weights files."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

import glc
from glc.codec.weights.export import make_tables
from glc.codec.weights.file import read_weights, save_weights
from tests.codec.fixed_model import fixed_codec_weights, fixed_image

VARIANTS: dict[str, dict[str, Any]] = {
    "categorical": {},
    "z_table": {},
    "factorized": {"hyper": "factorized"},
    "indices_map": {"coder": "indices_map"},
}
"""Of `z_table` the frequencies of z are counted on an image."""
WITH_Y = ["categorical", "z_table", "factorized"]
"""Those that transform the latent."""


class Variants:
    """Weights files and codecs, each made when it is asked for first.

    Args:
        folder: where to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.codec = cache(lambda variant: glc.load(self.weights(variant), "cpu"))

    def weights(self, variant: str) -> Path:
        """Return the weights file of a variant."""
        path = self.folder / f"{variant}.safetensors"
        if path.exists():
            return path
        fixed_codec_weights(path, **VARIANTS[variant])
        if variant == "z_table":
            made = read_weights(path)
            x = torch.from_numpy(fixed_image(256, 256, seed=5)).permute(2, 0, 1)[None] / 127.5 - 1
            tables = make_tables(made.model, [x])
            save_weights(path, made.model.state_dict(), made.description, tables, made.rates)
        return path
