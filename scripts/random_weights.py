"""Write the weights file of a codec with random weights: to measure and check without training.

    python scripts/random_weights.py natural OUT.safetensors [--seed 0]

The model is one of conf/model. Its pictures are noise; its times are those of a real codec of that
architecture, its files larger than those of a trained one.
"""

import argparse
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from glc.codec.weights.architecture import bake_projections
from glc.codec.weights.export import make_tables, rate_points
from glc.codec.weights.file import build_model, save_weights

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a file of conf/model, without its ending")
    parser.add_argument("weights", type=Path, help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"model={args.model}", "stage=joint"])
    description = OmegaConf.to_container(cfg.stage.module.model, resolve=True)
    assert isinstance(description, dict)
    torch.manual_seed(args.seed)
    model = build_model(args.model, description)
    plain = bake_projections(model, description)
    save_weights(args.weights, model.state_dict(), plain, make_tables(model), rate_points(model))


if __name__ == "__main__":
    main()
