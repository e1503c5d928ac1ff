"""Stand-in weights in third-party layouts: each tensor is a function of its name and shape.

`expected.json` holds what the authors' own code computes with these weights, in small configurations. A
tensor under a wrong name would have other values, and the result would be another.
"""

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from glc.codec.convert.detect import recognize
from glc.codec.convert.layouts import LAYOUTS, FittedLayout
from glc.codec.convert.read import open_source
from glc.codec.weights.architecture import build

SMALL = SimpleNamespace(
    channels=32, latent_channels=32, codes=64, hyper_codes=48, width=32, predictor_width=32, predictor_grid=4
)
IMAGE = (64, 128)
WINDOW = 4
"""Side of an attention window in the small GLC: the latent of `IMAGE` has two."""


SALT = 7
"""Chosen so that no value lies so near to a rounding boundary that machines could disagree."""


def layouts() -> dict[str, FittedLayout]:
    """Return the small layouts by their kinds."""
    vqgan = {"channels": 32, "latent_channels": 32, "codes": 64}
    sizes = {"glc": vars(SMALL), "taming": vqgan, "codeformer": vqgan}
    return {kind: LAYOUTS[kind].fit(**sizes[kind]) for kind in sizes}


def uniform(name: str, count: int) -> np.ndarray:
    """Return numbers in [-1, 1) that follow from a name, the same everywhere."""
    drawn = np.frombuffer(hashlib.shake_256(f"{SALT} {name}".encode()).digest(4 * count), dtype="<u4")
    return drawn.astype(np.float64) / 2**31 - 1


def stand_in(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the float32 tensor of a published name."""
    values = uniform(name, math.prod(shape)) * math.sqrt(3)  # of unit variance
    if name == "q_enc":
        values = 4 + values
    elif name == "q_dec":
        values = 0.25 + 0.05 * values
    elif name.endswith("quantize.embedding.weight"):
        values = 0.2 * values  # of the latents' magnitude: several codes are used
    elif name == "z_vq.embedding.weight":
        pass
    elif len(shape) > 1:
        gain = 1.0 if name.startswith(("vqgan", "code_pred", "encoder", "decoder", "generator")) else 0.4
        values = values * gain / math.sqrt(math.prod(shape[1:]))
    elif name.endswith("block.1.conv_out.bias") and "prior" in name:
        values = 1 + 0.1 * values  # steps and scales are positive
    elif "norm" in name and name.endswith("weight"):
        values = 1 + 0.1 * values
    else:
        values = 0.05 * values
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def stand_ins(layout: FittedLayout) -> dict[str, Tensor]:
    """Return the tensors of a complete third-party file."""
    return {name: stand_in(name, entry.shape) for name, entry in layout.entries.items()}


def networks(path: Path, *wanted: str) -> dict[str, nn.Module]:
    """Return the networks of a third-party file, by name, in evaluation mode."""
    published = recognize(open_source(path))
    made = {}
    for name, state in published.states(wanted or None).items():
        made[name] = build(published.layout.descriptions[name]).eval()
        made[name].load_state_dict(state)
    return made


def listing(tensors: dict[str, Tensor]) -> str:
    """Return a digest of all names and shapes, in any order."""
    lines = sorted(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def image(height: int, width: int) -> Tensor:
    """Return an image `[1, 3, height, width]` in [-1, 1], a sum of waves."""
    y, x = np.mgrid[0:height, 0:width] / 64
    planes = [
        np.sin(5 * x + 3 * c * y) * np.cos(7 * y - c) * 0.6 + 0.3 * np.sin(40 * x * y + c) for c in (0, 1, 2)
    ]
    return torch.from_numpy(np.stack(planes).astype(np.float32))[None]


def digest(values: Tensor) -> str:
    """Return a digest of whole numbers."""
    return hashlib.sha256(values.detach().numpy().astype("<i8").tobytes()).hexdigest()[:16]


def sample(values: Tensor, count: int = 8) -> list[float]:
    """Return evenly spaced values of a map, its mean and its root mean square."""
    flat = values.detach().double().flatten()
    picked = flat[:: max(1, flat.numel() // count)][:count]
    return [*picked.tolist(), flat.mean().item(), flat.square().mean().sqrt().item()]
