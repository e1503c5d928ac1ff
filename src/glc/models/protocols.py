"""What the codec asks of its networks: any `nn.Module` with these members can take the place of one of ours.

| role               | ours                                            | protocol        |
|--------------------|-------------------------------------------------|-----------------|
| E                  | `autoencoder.Encoder`                           | `LatentEncoder` |
| D                  | `autoencoder.Decoder`                           | `LatentDecoder` |
| g_a, g_s           | `transform.RateTransform`                       | `Transform`     |
| h_a, z, h_s        | `hyperprior.{Categorical,Factorized}Hyperprior` | `Hyperprior`    |
| C_h, inside of it  | `quantizer.VectorQuantizer`                     | `Codebook`      |
| entropy model of y | `context.QuadtreeContext`                       | `Context`       |

Only the networks that give the probabilities run in integers: `Hyperprior.decode`, its `synthesis`, and
`Context.walk`. `glc.codec.entropy.integer_nets` says what those may be made of; a network with another layer
is refused when it is exported.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

Run = Callable[
    [Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...], tuple[nn.Module, ...]], tuple[Tensor, ...]
]
"""Calls a function with maps `[B, C, h, w]` and returns its results. It may call it with some rows at a time:
the networks that the function uses tell how many must overlap."""

Scales = Callable[[Tensor], Tensor]


def run_whole(
    compute: Callable[..., tuple[Tensor, ...]], maps: tuple[Tensor, ...], networks: tuple[nn.Module, ...]
) -> tuple[Tensor, ...]:
    """Call a function with whole maps; a `Run`."""
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
        """Weight at which training balances the adversarial loss; the codec does not ask for it."""
        ...


class Transform(Protocol):
    """g_a or g_s: maps `[B, in, h, w]` to `[B, out, h, w]` at a rate point (`glc.models.transform.Rate`)."""

    def __call__(self, x: Tensor, rate: int | float | Tensor, /) -> Tensor:
        """Return the transform; rate points may differ within a batch."""
        ...


class Codebook(Protocol):
    """A quantiser whose indices are coded: `size` codewords."""

    size: int


class HyperOutput(Protocol):
    """What a hyperprior returns in training and to an encoder; see `glc.models.hyperprior.HyperOutput`."""

    z: Tensor
    z_hat: Tensor
    codes: Tensor | None
    indices: Tensor
    bits: Tensor


class Hyperprior(Protocol):
    """Side information z about y `[B, N, h, w]`, from which the context model starts.

    z is coded in one of two ways, by what the module has besides:

    - `quantizer: Codebook`: indices `[B, h / s, w / s]` in `[0, quantizer.size)`;
    - `density`: integers `[B, C, h / s, w / s]`, each under the table of its channel. `density.channels` is
      C, `density(integers)` returns the bits of each: export makes the tables from them.

    s is `downsampling`, or 4 where the module does not say.
    """

    synthesis: nn.Module
    """h_s: z_hat to the prior `[B, 3 N, h, w]`. Runs in integers."""

    def __call__(self, y: Tensor, noise: bool = False, /) -> HyperOutput:
        """Encode y."""
        ...

    def decode(self, indices: Tensor) -> Tensor:
        """Return z_hat for what was sent, exactly: by look-up, conversion or elementwise arithmetic."""
        ...


@dataclass
class ContextStep:
    """One step of a context model: what is expected of the elements that it codes; maps `[B, N, h, w]`."""

    mask: Tensor
    """Boolean `[1, N, h, w]`: the elements of this step."""
    quant_step: Tensor
    """Quantisation steps of y."""
    scales: Tensor
    """Standard deviations of the symbols, not bounded yet; or what the caller made of them."""
    means: Tensor
    """Means of `y / quant_step`."""
    symbols: Tensor = field(init=False)
    """Set by the caller: `round(y / quant_step - means)`. Elements of other steps are not looked at."""
    y_hat: Tensor = field(init=False)
    """Set by the walk on its last step: `(symbols + means) * quant_step` of all steps."""


class Context(Protocol):
    """The entropy model of y: a walk over steps that each know the symbols of those before."""

    channels: int
    """N."""

    def masks(self, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """Return which elements each step codes, boolean `[steps, 1, N, height, width]`."""
        ...

    def walk(self, prior: Tensor, run: Run = ..., scales: Scales | None = None) -> Iterator[ContextStep]:
        """Yield the steps; see `glc.models.context.QuadtreeContext.walk`."""
        ...

    def decode_mean(self, prior: Tensor) -> Tensor:
        """Return the y_hat that the prior alone predicts."""
        ...


def require(network: nn.Module, role: str, *names: str) -> None:
    """Check that a network has the members that its role needs.

    Raises:
        ValueError: one is missing; the message names network and member.
    """
    missing = [name for name in names if not hasattr(network, name)]
    if missing:
        kind = type(network)
        raise ValueError(
            f"{kind.__module__}.{kind.__qualname__} cannot be the {role}: it has no {', '.join(missing)}; "
            "glc.models.protocols says what it needs"
        )
