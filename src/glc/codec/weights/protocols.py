"""What the codec asks of a user's own network in the place of one of ours.

A weights file may name classes of a package that its reader trusts (see `glc.codec.weights.trust`). Such a
class is an `nn.Module`, and has the members below for the argument that it is given as. Subclasses of our own
networks have them already.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn


class EncoderNetwork(Protocol):
    """E: images x `[B, 3, H, W]` in [-1, 1] to latents l `[B, C, H / f, W / f]`, float32."""

    latent_channels: int
    """C."""
    downsampling: int
    """f: pixels per latent position along a side."""
    forward: Callable[..., Tensor]


class DecoderNetwork(Protocol):
    """D: latents l_hat `[B, C, H / f, W / f]` to images x_hat `[B, 3, H, W]`, nominally in [-1, 1]."""

    latent_channels: int
    downsampling: int
    forward: Callable[..., Tensor]


class LatentCoder(Protocol):
    """From l to l_hat: `forward(latent, rate, noise=False) -> glc.models.coder.CoderOutput`.

    The codec codes y = `analysis(l, rate)` under the probabilities that `context` gives, starting from the
    prior of `hyper`, and decodes l_hat = `synthesis(y_hat, rate)`, as `glc.models.coder.TransformCoder` does.
    """

    stride: int
    """Sides of the latent must be multiples of it."""
    num_rates: int
    """K: trained rate points."""
    analysis: nn.Module
    hyper: nn.Module
    context: nn.Module
    synthesis: nn.Module
    decode_z: Callable[..., Tensor]
    forward: Callable[..., Any]


class Hyperprior(Protocol):
    """The hyper-latent z: `forward(y, noise=False) -> glc.models.hyperprior.HyperOutput`.

    z is sent as indices where the module has a `quantizer` (a `VectorQuantizer`), as integers where it has a
    `density` (a `FactorizedDensity`); it has one of the two.
    """

    analysis: nn.Module
    """y `[B, N, h, w]` to z `[B, N, h / 4, w / 4]`."""
    synthesis: nn.Module
    """z_hat to the prior `[B, 3N, h, w]`; of layers that `glc.codec.entropy.integer_nets` knows."""
    decode: Callable[[Tensor], Tensor]
    """What was sent, to z_hat."""
    forward: Callable[..., Any]


class ContextModel(Protocol):
    """The entropy model of y in four passes, with the members of `glc.models.context.QuadtreeContext`.

    Its layers are those that `glc.codec.entropy.integer_nets` runs in integers.
    """

    channels: int
    """N, a multiple of 4."""
    split_prior: Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
    predict: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
    decode_mean: Callable[[Tensor], Tensor]
    forward: Callable[..., Any]


class Quantizer(Protocol):
    """A codebook of M vectors of D numbers, with the members of `glc.models.quantizer.VectorQuantizer`."""

    size: int
    """M."""
    codebook: Callable[[], Tensor]
    """`[M, D]`."""
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    forward: Callable[..., Any]


class Network(Protocol):
    """A refiner, l_hat to latents; or a code predictor, latents `[B, C, h, w]` to logits `[B, h, w, M]`."""

    forward: Callable[..., Tensor]


def missing_members(network: nn.Module, protocol: type) -> list[str]:
    """Return the members of a protocol that a network lacks."""
    # Not isinstance: it does not see the submodules of an nn.Module.
    names = {name: None for base in protocol.__mro__ for name in inspect.get_annotations(base)}
    lacking = [name for name in names if not hasattr(network, name)]
    if protocol is Hyperprior and not hasattr(network, "quantizer") and not hasattr(network, "density"):
        lacking.append("quantizer or density")
    return lacking
