"""Losses of the latent coder: rate, codebooks, distance between latents (paper sections 4.1 to 4.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RateLoss(nn.Module):
    """Bits per latent position: the terms `rate_y` and `rate_z`.

    The rate term R of the objective. Per latent position, not per pixel, so that for any f it is a few bits,
    of the same order as the distortions (about 1); bits per pixel are `rate / f**2`.
    """

    def forward(self, bits_y: Tensor, bits_z: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """Normalise the bits `[B]` of latents `[B, C, h, w]`."""
        positions = latent.shape[-2] * latent.shape[-1]
        return {"rate_y": bits_y / positions, "rate_z": bits_z / positions}


class CodebookLoss(nn.Module):
    """`|sg(v) - e|^2 + beta |v - sg(e)|^2`: codewords move to the vectors, vectors commit to their codewords.

    Paper equation 4. beta weights the commitment term, as in the paper; the published code weights the other.

    Args:
        beta: weight of the commitment (0.25).
    """

    def __init__(self, beta: float = 0.25) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, vectors: Tensor, codes: Tensor | None) -> Tensor:
        """Return the loss `[B]`, a mean over elements, of vectors and their codewords `[B, D, H, W]`.

        The codewords must carry the gradient to the codebook (`Quantized.codes`), not the straight-through
        one. The loss is 0 for the codes of a fixed codebook, None.
        """
        if codes is None:
            return vectors.new_zeros(len(vectors))
        vectors = vectors.float()
        codebook = (vectors.detach() - codes).square().mean((1, 2, 3))
        commitment = (vectors - codes.detach()).square().mean((1, 2, 3))
        return codebook + self.beta * commitment


class CodePredictionLoss(nn.Module):
    """D_code(l, l_hat): the terms `code_ce` and `latent_mse` (paper sections 4.2 and 4.4).

    `code_ce` is the cross-entropy, in nats, of the clean latent's codeword indices M_l under CP(l_hat);
    `latent_mse` the mean square of l - l_hat over all elements, as in the published code (the squared norm
    per position would be C times as large). The paper weights them 0.5 and 1.

    Args:
        predictor: CP, trained jointly; None omits `code_ce` (the ablation without code prediction).
    """

    def __init__(self, predictor: nn.Module | None) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, latent: Tensor, latent_hat: Tensor, indices: Tensor | None) -> dict[str, Tensor]:
        """Compare latents `[B, C, h, w]`; each term is `[B]`.

        Args:
            latent: l, the target.
            latent_hat: l_hat.
            indices: M_l `[B, h, w]`; not needed without a predictor.
        """
        terms = {"latent_mse": (latent - latent_hat).square().mean((1, 2, 3))}
        if self.predictor is not None and indices is not None:
            logits = self.predictor(latent_hat).float().flatten(0, 2)
            with torch.autocast(latent.device.type, enabled=False):
                nats = F.cross_entropy(logits, indices.flatten(), reduction="none")
            terms["code_ce"] = nats.view(len(indices), -1).mean(1)
        return terms
