"""Protocols of the codec's networks: any `nn.Module` with these members can replace the default.

| role               | default                                         | protocol        |
|--------------------|-------------------------------------------------|-----------------|
| E                  | `autoencoder.Encoder`                           | `LatentEncoder` |
| D                  | `autoencoder.Decoder`                           | `LatentDecoder` |
| g_a, g_s           | `transform.RateTransform`                       | `Transform`     |
| h_a, z, h_s        | `hyperprior.{Categorical,Factorized}Hyperprior` | `Hyperprior`    |
| C_h, in h          | `quantizer.VectorQuantizer`                     | `Codebook`      |
| entropy model of y | `context.QuadtreeContext`                       | `Context`       |

Only the networks that compute probabilities run in integers: `Hyperprior.decode`, its `synthesis`, and
`Context.walk`. `glc.codec.entropy.integer_nets` lists their layers; export refuses a network with another
layer.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from glc.models.quadtree import ContextStep

Run = Callable[
    [Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...], tuple[nn.Module, ...]], tuple[Tensor, ...]
]
"""Calls a function with maps `[B, C, h, w]` and returns its results. It may call it per row tile; the halo
follows from the networks that the function uses."""

Scales = Callable[[Tensor], Tensor]


def run_whole(
    compute: Callable[..., tuple[Tensor, ...]], maps: tuple[Tensor, ...], networks: tuple[nn.Module, ...]
) -> tuple[Tensor, ...]:
    """Call a function with complete maps; a `Run`."""
    return compute(*maps)


class LatentEncoder(Protocol):
    """E: maps x `[B, 3, H, W]` in [-1, 1] to l `[B, latent_channels, H / f, W / f]`."""

    latent_channels: int
    downsampling: int
    """f: pixels per latent position along a side."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return l. Sides of x are multiples of f times the coder's stride."""
        ...


class LatentDecoder(Protocol):
    """D: maps l_hat `[B, latent_channels, h, w]` to x_hat `[B, 3, f h, f w]`, nominally in [-1, 1]."""

    latent_channels: int
    downsampling: int
    """f, the same as the encoder's."""

    def __call__(self, latent: Tensor, /) -> Tensor:
        """Return x_hat, not clamped."""
        ...

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight at which training balances the adversarial loss; not used by the codec."""
        ...


class Transform(Protocol):
    """g_a or g_s: maps `[B, in, h, w]` to `[B, out, h, w]` at a rate index (`glc.models.transform.Rate`)."""

    def __call__(self, x: Tensor, rate_index: int | float | Tensor, /) -> Tensor:
        """Return the transform; rate indexes may differ within a batch."""
        ...


class Codebook(Protocol):
    """A quantiser whose indices are coded: `size` codewords."""

    size: int


class HyperOutput(Protocol):
    """Output of a hyperprior in training and encoding; see `glc.models.hyperprior.HyperOutput`."""

    z: Tensor
    z_hat: Tensor
    codes: Tensor | None
    indices: Tensor
    bits: Tensor


class Hyperprior(Protocol):
    """Hyper-latent z of y `[B, N, h, w]`, and the prior of the context model.

    z is coded in one of two ways, depending on a further member:

    - `quantizer: Codebook`: indices `[B, h / s, w / s]` in `[0, quantizer.size)`;
    - `density`: integers `[B, C, h / s, w / s]`, each under the table of its channel. `density.channels` is
      C; `density(integers)` returns the bits of each, from which export makes the tables.

    s is the member `downsampling`, by default 4.
    """

    synthesis: nn.Module
    """h_s: z_hat to the prior `[B, 3 N, h, w]`. Runs in integers."""

    def __call__(self, y: Tensor, noise: bool = False, /) -> HyperOutput:
        """Encode y."""
        ...

    def decode(self, indices: Tensor) -> Tensor:
        """Return z_hat for the symbols of z, exactly: by look-up, conversion or elementwise arithmetic."""
        ...


class Context(Protocol):
    """The entropy model of y: steps, each conditioned on the symbols of earlier steps."""

    channels: int
    """N."""

    def masks(self, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """Return which elements each step codes, boolean `[steps, 1, N, height, width]`."""
        ...

    def walk(self, prior: Tensor, run: Run = ..., scales: Scales | None = None) -> Iterator[ContextStep]:
        """Yield the steps; see `glc.models.context.QuadtreeContext.walk`."""
        ...

    def decode_mean(self, prior: Tensor) -> Tensor:
        """Return y_hat with all symbols zero, from the prior alone."""
        ...


def require(network: nn.Module, role: str, *names: str) -> None:
    """Check that a network has the members that its role needs.

    Raises:
        ValueError: a member is missing; the message names network and member.
    """
    missing = [name for name in names if not hasattr(network, name)]
    if missing:
        kind = type(network)
        raise ValueError(
            f"{kind.__module__}.{kind.__qualname__} cannot be the {role}: it has no {', '.join(missing)}; "
            "see glc.models.protocols"
        )
