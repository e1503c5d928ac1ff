"""Tiny networks, and a decoder of the quadtree context that is written out step by step."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from glc.models.autoencoder import Decoder, Encoder
from glc.models.code_predictor import CodePredictionRefiner
from glc.models.coder import IndicesMapCoder, TransformCoder
from glc.models.context import QuadtreeContext, quadtree_masks
from glc.models.glc import GLC
from glc.models.hyperprior import CategoricalHyperprior, FactorizedHyperprior

LATENT = 6
CHANNELS = 8


@torch.no_grad()
def spread_rates(module: nn.Module) -> None:
    """Let rate points differ: fresh scalers are 1 at all of them, which would hide mistakes."""
    for name, parameter in module.named_parameters():
        if name.endswith("scaler.scale"):
            parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()).view_as(parameter))


@pytest.fixture
def make_coder() -> Callable[..., TransformCoder]:
    """Build a transform coder; `factorized=True` for a factorised hyperprior."""

    def make(factorized: bool = False, num_rates: int = 3, codes: int = 16) -> TransformCoder:
        hyper = FactorizedHyperprior(CHANNELS) if factorized else CategoricalHyperprior(CHANNELS, codes)
        coder = TransformCoder(LATENT, hyper, QuadtreeContext(CHANNELS, depth=1), num_rates)
        if isinstance(hyper, CategoricalHyperprior):
            nn.init.normal_(hyper.quantizer.embedding, std=0.3)  # fresh codes all lie near zero
        spread_rates(coder)
        return coder.eval()

    return make


@pytest.fixture
def make_glc(make_coder: Callable[..., TransformCoder]) -> Callable[..., GLC]:
    """Build a codec with f=4 in evaluation mode."""

    def make(
        coder: TransformCoder | IndicesMapCoder | None = None, refiner: CodePredictionRefiner | None = None
    ) -> GLC:
        encoder = Encoder(LATENT, 8, (1, 2), num_blocks=1, stem=2, norm="pixel", window=3)
        decoder = Decoder(LATENT, 8, (1, 2), num_blocks=1, stem=2, norm="pixel", window=3)
        return GLC(encoder, decoder, coder or make_coder(), refiner).eval()

    return make


@pytest.fixture
def decode() -> Callable[[QuadtreeContext, Tensor, Tensor], Tensor]:
    """Return y_hat from the prior and the symbols alone, as a receiver has to compute it.

    At each step only the symbols of that step are read, and all that was not decoded yet is NaN, so a
    value used too early shows.
    """

    def run(context: QuadtreeContext, prior: Tensor, symbols: Tensor) -> Tensor:
        n = context.channels
        step, _, mean = prior[:, :n].clamp_min(0.5), prior[:, n : 2 * n], prior[:, 2 * n :]
        decoded = torch.full_like(symbols, torch.nan)
        for k, mask in enumerate(quadtree_masks(n, *symbols.shape[-2:])):
            if k > 0:
                known = torch.cat((decoded.nan_to_num(0), context.reduction(prior)), 1)
                mean = context.shared(context.adaptors[k - 1](known))[:, n:]
            chosen = mask.expand_as(symbols)
            assert decoded[chosen].isnan().all()
            decoded[chosen] = symbols[chosen] + mean[chosen]
        return decoded * step

    return run
