"""A very small codec whose weights are the same bits on every machine, in every version of torch and numpy.

Its weights are computed from the raw output of PCG64, which numpy guarantees, with integers and powers of
two. It is not trained, but its symbols are neither all zero nor all large.
"""

import math
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from glc.codec.entropy.tables import Table, Tables, gaussian_table, gaussian_tables, index_table
from glc.codec.weights.export import rate_points
from glc.codec.weights.file import build_model, save_weights

LATENT = 16
CHANNELS = 16
CODES = 32
RATES = 4
DOWNSAMPLING = 8
SIZES = (8, 16, 32, 64)
"""Codebooks of the rate points of indices-map coding."""

Hyper = Literal["categorical", "factorized"]
Coder = Literal["transform", "indices_map"]
ZTables = Literal["none", "one", "rates"]


def fixed_codec_weights(
    path: Path,
    hyper: Hyper = "categorical",
    coder: Coder = "transform",
    seed: int = 0,
    z: ZTables = "none",
    gate: bool = False,
    fsq: bool = False,
) -> Path:
    """Write the weights file of a fixed codec and return its path; another seed is another codec.

    `z` gives a categorical z a table of frequencies for all rate points, or one for each, instead of log2(M)
    bits. `fsq` is finite scalar quantisation of z, with a bounded latent.
    """
    description = fixed_description(hyper, coder, gate, fsq)
    model = build_model(path, description)
    state = {name: _fill(name, tensor, seed) for name, tensor in model.state_dict().items()}
    if fsq:
        state["coder.hyper.quantizer.embedding"] = model.coder.hyper.quantizer.codebook()
    save_weights(path, state, description, _tables(hyper, coder, z), rate_points(model, [1, 2, 4, 8]))
    return path


def fixed_description(
    hyper: Hyper = "categorical", coder: Coder = "transform", gate: bool = False, fsq: bool = False
) -> dict[str, Any]:
    """Return the architecture of the fixed codec."""
    ends = {
        "latent_channels": LATENT,
        "channels": 8,
        "multipliers": [1, 2],
        "num_blocks": 1,
        "stem": DOWNSAMPLING // 2,
        "norm": "pixel",
        "level_attention": False,
        "window": 8,
    }
    hypers: dict[str, dict[str, Any]] = {
        "categorical": {"codebook_size": CODES, "normalize": True},
        "factorized": {},
    }
    hyperprior = {
        "_target_": f"glc.models.hyperprior.{hyper.title()}Hyperprior",
        "channels": CHANNELS,
        **hypers[hyper],
    }
    if fsq:
        hyperprior["levels"] = [4, 4, 2]
    coders: dict[str, dict[str, Any]] = {
        "transform": {
            "_target_": "glc.models.coder.TransformCoder",
            "latent_channels": LATENT,
            "hyper": hyperprior,
            "context": {"_target_": "glc.models.context.QuadtreeContext", "channels": CHANNELS, "depth": 1},
            "num_rates": RATES,
        },
        "indices_map": {
            "_target_": "glc.models.coder.IndicesMapCoder",
            "latent_channels": LATENT,
            "sizes": list(SIZES),
        },
    }
    if gate:
        target = "glc.models.gate.QuantizationGate"
        coders["transform"]["gate"] = {
            "_target_": target, "channels": CHANNELS, "num_rates": RATES, "width": 8
        }  # fmt: skip
    return {
        "_target_": "glc.models.glc.GLC",
        "encoder": {
            "_target_": "glc.models.autoencoder.Encoder",
            **ends,
            **({"bounded": True} if fsq else {}),
        },
        "decoder": {"_target_": "glc.models.autoencoder.Decoder", **ends},
        "coder": coders[coder],
    }


def fixed_image(height: int = 256, width: int = 256, seed: int = 0) -> np.ndarray:
    """Return an image `[height, width, 3]` of uint8 with slopes, edges and texture, like a photograph's."""
    rows, cols = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    shift = np.array([0, 40, 90])
    slope = (rows * 2 + cols * 3 + shift) // 4 % 256
    squares = ((rows // 24 + cols // 40) % 3) * 60
    raw = np.random.PCG64(seed).random_raw(height * width).reshape(height, width, 1)
    texture = (raw >> 59).astype(np.int64) * ((rows // 64 + cols // 64) % 2)
    return np.clip((slope + squares) * 3 // 5 + texture, 0, 255).astype(np.uint8)


def _integers(name: str, shape: torch.Size, seed: int) -> Tensor:
    """Return integers in [-2^15, 2^15) that depend only on the seed and the tensor's name."""
    raw = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(shape.numel())
    return torch.from_numpy((raw >> 48).astype(np.int64) - (1 << 15)).reshape(shape)


def _fill(name: str, tensor: Tensor, seed: int) -> Tensor:
    if tensor.dtype == torch.bool:
        return torch.ones_like(tensor)
    uniform = _integers(name, tensor.shape, seed).float() / (1 << 15)
    if name.endswith("scaler.scale"):
        # More symbols at each rate point.
        factors = [0.25, 0.5, 1, 2] if "analysis" in name else [1.5, 1.25, 1, 0.75]
        return (1 + uniform / 8) * torch.tensor(factors)[:, None]
    if name.endswith("embedding"):
        return uniform / 4
    if ".density." in name:
        return uniform
    if tensor.ndim == 1:
        value = uniform / 16
        if name.endswith("weight"):  # of a normalisation
            value = value + 1
        return value + _start(name, tensor)
    # The power of two next to 1 / sqrt(fan in) keeps magnitudes from layer to layer.
    fan_in = tensor[0].numel()
    return uniform * math.ldexp(_gain(name), 1 - fan_in.bit_length() // 2)


def _start(name: str, tensor: Tensor) -> Tensor:
    """Return what moves quantisation steps to about 1.5 and scales to about 0.75."""
    value = torch.zeros_like(tensor)
    if name == "coder.hyper.synthesis.4.1.project.bias":
        value[:CHANNELS] = 1.5
        value[CHANNELS : 2 * CHANNELS] = 0.75
    if name == "coder.context.shared.0.1.project.bias":
        value[:CHANNELS] = 0.75
    if name == "coder.gate.layers.3.bias":
        value += 0.25
    return value


def _gain(name: str) -> float:
    """Return the factor of layers in gated branches, which square magnitudes, and of guessed means."""
    if name.startswith("coder.context") or name.endswith(("expand.weight", "gate.weight")):
        return 0.5
    return 0.25 if name.startswith("coder") and name.endswith("project.weight") else 1.0


def _tables(hyper: Hyper, coder: Coder, z: ZTables) -> Tables:
    if coder == "indices_map":
        return gaussian_tables()
    if hyper == "factorized":
        # Not from the density: its floats may differ between machines.
        tables = [gaussian_table(0.5 + k / 4) for k in range(CHANNELS)]
        return gaussian_tables([Table(t.low + k % 5 - 2, t.frequencies) for k, t in enumerate(tables)])
    if z == "rates":
        k = torch.arange(CODES)
        # The second favours codes that the images do not have, so that their files use fixed length.
        counts = [k**2, k.flip(0) ** 2, k, 40 * ((k % 8 == 3) | (k % 8 == 5))]
        return gaussian_tables(z_rates=[index_table(count) for count in counts])
    return gaussian_tables([index_table(torch.arange(CODES) ** 2)] if z == "one" else [])
