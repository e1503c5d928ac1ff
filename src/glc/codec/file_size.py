"""Sizes of the files that a model in training would write."""

import copy

import torch
from torch import Tensor, nn

from glc.codec.bitstream import OVERHEAD
from glc.codec.entropy.latent_coding import make_latent_codec
from glc.codec.weights.architecture import bake_projections
from glc.codec.weights.export import make_tables
from glc.models.glc import GLC


@torch.no_grad()
def file_sizes(model: GLC, x: Tensor) -> Tensor:
    """Return the bytes of each image's file at each rate point, `[K, B]`, int64.

    They are those of `Codec.compress` after an export of these weights without `--images` (indices of z have
    a fixed length), with E in float32. The model does not change, and no random numbers are drawn.

    Args:
        model: in evaluation mode.
        x: images `[B, 3, H, W]` in [-1, 1], sides multiples of the model's stride.

    Raises:
        InexactError: a network cannot be computed in integers.
        ValueError: latents are not finite.
    """
    coder = copy.deepcopy(model.coder).eval()
    baked = GLC(model.encoder, model.decoder, coder)
    bake_projections(nn.ModuleList([coder]), {})
    codec = make_latent_codec(coder, make_tables(baked), x.device)
    with torch.autocast(x.device.type, enabled=False):
        latent = model.encoder(x.float())
        sizes = []
        for k in range(model.num_rates):
            payloads, _ = codec.encode(latent, latent.new_full((len(x),), k))
            sizes.append([OVERHEAD + len(payload) for payload in payloads])
    return torch.tensor(sizes, device=x.device)
