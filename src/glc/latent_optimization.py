"""Latent optimisation: gradient descent on one image's latent before it is coded.

E is trained for all images; a single image has a better latent. Starting at E's latent, it minimises the
rate-distortion loss of the decoded image (content-adaptive encoding: Campos et al., CVPR workshops 2019; Yang
et al., NeurIPS 2020). The format and the decoder are unchanged.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from glc import fused
from glc.codec.runtime.resources import check_memory, multiplies_bfloat16
from glc.losses.perceptual import LEAST, LPIPS, Net, RandomAugmentation
from glc.models.glc import GLC

DEFAULT_STEPS = 10

_RESERVE = 1.5
"""Peak memory of a step over the bytes that its graph saves for the backward pass."""


@dataclass(frozen=True)
class _Cost:
    """Rate and distortion of a latent: bits, and `l1 + lpips`."""

    bits: Tensor
    distortion: Tensor


class LatentOptimizer:
    """Optimise a latent for lower distortion at the same bits.

    ```
    l --coder(rate)--> bits, l_hat --D--> x_hat      loss = distortion / that of E's latent
    ^                                                       + rate_weight * max(0, bits / those of E's - 1)
    '------------- Adam: steps times ---------------       distortion = mean |x - x_hat| + LPIPS
    ```

    LPIPS is computed on random augmentations (E-LPIPS), against overfitting its network. A result that is
    worse than E's latent is discarded. Larger images are optimised in tiles, one after the other, each as an
    image of its own: attention windows and group statistics of D are those of the tile.

    Steps compute D and LPIPS in bfloat16 where the device multiplies it natively, since a gradient needs few
    digits. E's latent and the result are compared in float32.

    An instance may be shared by threads, for codecs on one device.

    Args:
        steps: steps of gradient descent, at least 1.
        net: backbone of LPIPS.
        weights_dir: folder of its weights; None for torch hub's cache or a download.
        step_size: of Adam's first step, relative to the latent's root mean square; it decays linearly to 0.
        rate_weight: weight of the relative excess of bits; relative distortion has weight 1.
        tile: largest side of a tile in pixels.
        memory: bytes per tile; its side is halved until they suffice. A constant, because the tiling changes
            the file: the file does not depend on the memory of the machine.
        margin: halo in pixels: it is computed with a tile, and not changed.
        seed: of the augmentations.
        distance: maps two batches `[B, 3, H, W]` in [-1, 1] to distances `[B]`; replaces LPIPS.
        bfloat16: whether steps use bfloat16; None: as above.

    Raises:
        ValueError: `steps` is not an integer, or less than 1.
        WeightsUnavailable: LPIPS' weights are not available.
        FileNotFoundError: `weights_dir` is given and is not a folder.
    """

    def __init__(
        self,
        steps: int = DEFAULT_STEPS,
        *,
        net: Net = "squeeze",
        weights_dir: str | Path | None = None,
        step_size: float = 0.05,
        rate_weight: float = 1.0,
        tile: int = 1024,
        memory: int = 4_000_000_000,
        margin: int = 64,
        seed: int = 0,
        distance: nn.Module | None = None,
        bfloat16: bool | None = None,
    ) -> None:
        if steps != int(steps) or steps < 1:
            raise ValueError(f"steps must be an integer, at least 1, got {steps}")
        self.steps = int(steps)
        self.step_size = step_size
        self.rate_weight = rate_weight
        self.tile = tile
        self.memory = memory
        self.margin = margin
        self.seed = seed
        self.bfloat16 = bfloat16
        self.distance = LPIPS(net, weights_dir, "autocast") if distance is None else distance
        fused.fuse(self.distance)

    def __call__(
        self, model: GLC, x: Tensor, latent: Tensor, rate_index: float, memory: int | None
    ) -> Tensor:
        """Return the optimised latent of an image at a rate index.

        Args:
            model: the codec's networks, without gradients.
            x: `[1, 3, H, W]` in [-1, 1], sides multiples of the model's stride.
            latent: E's l, `[1, C, H / f, W / f]`; not changed.
            rate_index: see `glc.models.transform.Rate`.
            memory: memory limit in bytes; None for no limit.

        Raises:
            MemoryLimitError: a tile needs more memory than the limit.
        """
        if min(x.shape[-2:]) < LEAST:
            return latent  # too small for LPIPS' network
        # Inference-mode tensors cannot be saved for backward; clones made outside of it can.
        with torch.inference_mode(False), torch.enable_grad():
            self.distance.to(x.device)
            x, latent, rate_index = x.clone(), latent.clone(), float(rate_index)
            side = self._tile_side(model, x, latent, rate_index, memory)
            model = _with_kernels(model)
            for tile in _tiles(latent.shape[-2], latent.shape[-1], side, self._latents(model, self.margin)):
                self._optimize(model, x, latent, rate_index, tile)
        return latent

    def _latents(self, model: GLC, pixels: float) -> int:
        """Return pixels as latent rows, rounded down to a positive multiple of the coder's stride."""
        stride = model.coder.stride
        return max(1, math.floor(pixels / model.encoder.downsampling / stride)) * stride

    def _optimize(self, model: GLC, x: Tensor, latent: Tensor, rate_index: float, tile: "_Tile") -> None:
        """Optimise one tile of the latent, in place."""
        f = model.encoder.downsampling
        seen = x[..., tile.top * f : tile.bottom * f, tile.left * f : tile.right * f]
        start = latent[..., tile.top : tile.bottom, tile.left : tile.right].clone()
        views = RandomAugmentation(self.distance, generator=torch.Generator().manual_seed(self.seed)).train()
        native = multiplies_bfloat16(x.device) if self.bfloat16 is None else self.bfloat16
        with torch.no_grad():
            first = self._cost(model, seen, start, rate_index, self.distance)
        moved = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([moved])
        size = self.step_size * start.square().mean().sqrt().item()
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = size * (1 - step / self.steps)
            loss = self._loss(self._cost(model, seen, moved, rate_index, views, native), first)
            (gradient,) = torch.autograd.grad(loss, moved)
            moved.grad = gradient * tile.inside.to(gradient)
            optimizer.step()
        with torch.no_grad():
            last = self._cost(model, seen, moved, rate_index, self.distance)
            if self._loss(last, first) < 1:  # 1 is the loss of E's latent
                latent[..., tile.top : tile.bottom, tile.left : tile.right] = moved

    def _cost(
        self,
        model: GLC,
        x: Tensor,
        latent: Tensor,
        rate_index: float,
        distance: Callable[..., Tensor],
        bfloat16: bool = False,
    ) -> _Cost:
        coded = model.coder(latent, rate_index)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            # The layout of the kernels, and of PyTorch's fastest convolutions.
            latent_hat = coded.latent_hat.contiguous(memory_format=torch.channels_last)
            x_hat = model.decode_latent(latent_hat)
            distortion = (x - x_hat).abs().mean() + distance(x_hat, x).mean()
        return _Cost(coded.bits.sum(), distortion)

    def _loss(self, cost: _Cost, first: _Cost) -> Tensor:
        excess = (cost.bits / first.bits - 1).clamp(min=0)
        return cost.distortion / first.distortion + self.rate_weight * excess

    def _tile_side(self, model: GLC, x: Tensor, latent: Tensor, rate_index: float, memory: int | None) -> int:
        """Return the largest side of a tile, in latent rows, that fits `self.memory`."""
        f, margin = model.encoder.downsampling, self._latents(model, self.margin)
        height, width = latent.shape[-2:]
        least = max(2 * model.coder.stride, math.ceil(LEAST / f / model.coder.stride) * model.coder.stride)
        sample = latent[..., :least, :least].clone().requires_grad_()
        part = x[..., : least * f, : least * f]
        kept = _bytes_kept(model, lambda: self._cost(model, part, sample, rate_index, self.distance))
        per_position = _RESERVE * kept / (sample.shape[-2] * sample.shape[-1])
        side = self._latents(model, self.tile)
        while True:
            need = int(per_position * min(height, side + 2 * margin) * min(width, side + 2 * margin))
            smaller = side // 2 // model.coder.stride * model.coder.stride
            if need <= self.memory or smaller < least:
                check_memory(need, memory, "--optimize-latent")
                return side
            side = smaller


@dataclass(frozen=True)
class _Tile:
    """A tile of a latent with its halo, in latent rows and columns."""

    top: int
    bottom: int
    left: int
    right: int
    inside: Tensor
    """`[rows, columns]`: true in the tile, false in its halo."""


def _tiles(height: int, width: int, side: int, margin: int) -> Iterator[_Tile]:
    """Yield tiles, with their halos, that cover a latent exactly once."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            first, last = max(0, top - margin), min(height, top + side + margin)
            begin, end = max(0, left - margin), min(width, left + side + margin)
            inside = torch.zeros(last - first, end - begin, dtype=torch.bool)
            inside[top - first : top - first + side, left - begin : left - begin + side] = True
            yield _Tile(first, last, begin, end, inside)


def _with_kernels(model: GLC) -> GLC:
    """Return a copy of a model, on the same weights, that uses the kernels of `glc.fused`."""
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    made = copy.deepcopy(model, weights)
    fused.fuse(made)
    return made


def _bytes_kept(model: GLC, compute: Callable[[], object]) -> int:
    """Return the bytes that a computation saves for the backward pass, without the model's weights."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            kept += storage.nbytes()
        # Detached: a saved tensor that is its own node's output would form a reference cycle.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute()
    return kept
