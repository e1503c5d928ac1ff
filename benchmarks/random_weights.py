"""Write the weights file of a codec with random weights, for benchmarks and tests without training.

    python -m benchmarks.random_weights natural OUT.safetensors [SEED]

The model is a name in conf/model. It is as fast as a trained codec of that architecture; its files are larger
and its images are noise.
"""

import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from glc.codec.weights.architecture import bake_projections
from glc.codec.weights.export import make_tables, rate_points
from glc.codec.weights.file import build_model, save_weights

ROOT = Path(__file__).resolve().parent.parent


def random_weights(path: Path, model: str, seed: int = 0) -> Path:
    """Write the weights file of a model of conf/model with seeded random weights, and return its path."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"model={model}", "stage=joint"])
    description = OmegaConf.to_container(cfg.stage.module.model, resolve=True)
    assert isinstance(description, dict)
    torch.manual_seed(seed)
    network = build_model(model, description)
    plain = bake_projections(network, description)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, network.state_dict(), plain, make_tables(network), rate_points(network))
    return path


if __name__ == "__main__":
    random_weights(Path(sys.argv[2]), sys.argv[1], *map(int, sys.argv[3:4]))
