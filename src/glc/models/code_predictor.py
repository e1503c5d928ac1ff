"""The code predictor CP: predicts the codewords of the clean latent (paper sections 4.2, 4.4)."""

import torch
from torch import Tensor, nn

from glc.layers.blocks import merge_windows, partition_windows
from glc.models.quantizer import VectorQuantizer


class _Layer(nn.Module):
    """A pre-normalised transformer layer; positions enter the queries and keys of every layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, position: Tensor, outside: Tensor | None) -> Tensor:
        h = self.norm1(x)
        query = h + position
        x = x + self.attention(query, query, h, key_padding_mask=outside, need_weights=False)[0]
        return x + self.feed_forward(self.norm2(x))


class CodePredictor(nn.Module):
    """Transformer that predicts the codeword indices M_l of the latent from the decoded latent.

    Used for supervision: its cross-entropy penalises errors of the transform coder that change a codeword.
    Maps larger than its grid are predicted window by window.

    ```
    l_hat [B, C, h, w] -> windows of grid x grid -> linear -> + position -> `layers` x transformer
      -> norm -> linear -> logits [B, h, w, M]
    ```

    Args:
        latent_channels: C.
        codebook_size: M.
        width: of the transformer (512 in the paper).
        heads: attention heads (8 in the paper).
        layers: transformer layers (9 in the paper).
        grid: side of the learned position grid in latent positions: training crop / f (16 in the paper).
    """

    def __init__(
        self,
        latent_channels: int,
        codebook_size: int,
        width: int = 512,
        heads: int = 8,
        layers: int = 9,
        grid: int = 16,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.position = nn.Parameter(0.02 * torch.randn(grid**2, width))
        self.embed = nn.Linear(latent_channels, width)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, codebook_size, bias=False))

    def forward(self, latent: Tensor) -> Tensor:
        """Return logits `[B, h, w, M]` for a latent `[B, C, h, w]`."""
        size = (latent.shape[-2], latent.shape[-1])
        tokens, inside = partition_windows(latent, self.grid)
        h, w = (min(self.grid, side) for side in size)
        position = self.position.view(self.grid, self.grid, -1)[:h, :w].reshape(h * w, -1)
        outside = None if inside is None else ~inside
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, position, outside)
        return merge_windows(self.head(x), self.grid, size).permute(0, 2, 3, 1)


class CodePredictionRefiner(nn.Module):
    """The ablation "code prediction in the network": D gets predicted codewords instead of l_hat.

    ```
    l_hat -> CP -> argmax -> codeword of C -> D
    ```

    The gradient passes through the softmax-weighted mean of the codewords.

    Args:
        predictor: CP.
        quantizer: C, with as many codewords as the predictor has outputs.
    """

    def __init__(self, predictor: CodePredictor, quantizer: VectorQuantizer) -> None:
        super().__init__()
        self.predictor = predictor
        self.quantizer = quantizer

    def forward(self, latent_hat: Tensor) -> Tensor:
        """Replace each vector of `[B, C, h, w]` by its predicted codeword."""
        probabilities = self.predictor(latent_hat).softmax(-1)
        codebook = self.quantizer.codebook()
        soft = (probabilities @ codebook).permute(0, 3, 1, 2)
        hard = self.quantizer.decode(probabilities.argmax(-1))
        return soft + (hard - soft).detach()
