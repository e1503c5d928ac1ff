"""Distance between latents as the codebook sees it (paper sections 4.2 to 4.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.models.code_predictor import CodePredictor


class CodePredictionLoss(nn.Module):
    """D_code(l, l_hat): the terms `code_ce` and `latent_mse`.

    `code_ce` is the cross-entropy, in nats, of the clean latent's code indices M_l under CP(l_hat);
    `latent_mse` the mean square of l - l_hat over all elements, as in the published code (the squared norm
    per position would be C times as large). The paper weights them 0.5 and 1.

    Args:
        predictor: CP, trained along; None leaves `code_ce` out (the ablation without code prediction).
    """

    def __init__(self, predictor: CodePredictor | None) -> None:
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
