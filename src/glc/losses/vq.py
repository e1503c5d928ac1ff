"""The codebook loss (paper equation 4)."""

from torch import Tensor, nn


class CodebookLoss(nn.Module):
    """`|sg(v) - e|^2 + beta |v - sg(e)|^2`: codes move to the vectors, vectors commit to their codes.

    beta weights the commitment, as in the paper's equation; published code puts it on the other term.

    Args:
        beta: weight of the commitment (0.25).
    """

    def __init__(self, beta: float = 0.25) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Return the loss `[B]`, a mean over elements, of vectors and their codes `[B, D, H, W]`.

        The codes must carry the gradient to the codebook (`Quantized.codes`), not the straight-through one.
        """
        vectors = vectors.float()
        codebook = (vectors.detach() - codes).square().mean((1, 2, 3))
        commitment = (vectors - codes.detach()).square().mean((1, 2, 3))
        return codebook + self.beta * commitment
