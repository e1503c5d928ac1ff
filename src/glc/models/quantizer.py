"""Vector quantisation: nearest-code search and codebooks."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantiser returns for a map `[B, D, H, W]`."""

    quantized: Tensor
    """`[B, D, H, W]`: the codes, with the gradient passed straight through to the input."""
    codes: Tensor
    """`[B, D, H, W]`: the same values, with the gradient to the codebook instead."""
    indices: Tensor
    """`[B, H, W]`, int64 in `[0, M)`."""


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute in float32 proper: neither under autocast nor in a GPU's TF32 of 10 bits.

    Trainings allow TF32. Where the mean of latents is far from zero it finds another code for one in five.
    """
    products = torch.backends.cuda.matmul
    # The newer of torch's two names for it; where there is only the older, that one.
    name, exact = ("fp32_precision", "ieee") if hasattr(products, "fp32_precision") else ("allow_tf32", False)
    before = getattr(products, name)
    with torch.autocast(device.type, enabled=False):
        if before != exact:
            setattr(products, name, exact)
        try:
            yield
        finally:
            if before != exact:
                setattr(products, name, before)


def nearest_code(vectors: Tensor, codebook: Tensor, max_bytes: int = 1 << 28) -> Tensor:
    """Return the index of the code nearest to each vector, in the Euclidean sense.

    Distances are computed in float32 whatever the surrounding precision (bfloat16 and TF32 pick wrong codes),
    in chunks of vectors so that no more than `max_bytes` of distances exist at a time, and no one-hot matrix.

    Args:
        vectors: `[N, D]`.
        codebook: `[M, D]`.
        max_bytes: the limit for one chunk of distances.

    Returns:
        `[N]`, int64 in `[0, M)`.
    """
    with torch.no_grad(), full_float32(vectors.device):
        vectors, codes = vectors.detach().float(), codebook.detach().float()
        # |v - e|^2 = |v|^2 - 2 v.e + |e|^2, of which the first term is the same for all codes.
        norms = codes.square().sum(1)
        rows = max(1, max_bytes // (4 * codes.shape[0]))
        chunks = [torch.addmm(norms, v, codes.T, alpha=-2).argmin(1) for v in vectors.split(rows)]
        return torch.cat(chunks) if chunks else vectors.new_zeros(0, dtype=torch.long)


def kmeans(
    vectors: Tensor, clusters: int, iterations: int = 10, generator: torch.Generator | None = None
) -> Tensor:
    """Cluster vectors by Lloyd's algorithm; an empty cluster restarts at a random vector.

    Args:
        vectors: `[N, D]`, N at least 1.
        clusters: the number of centres; more than N repeats vectors with a little noise.
        iterations: rounds of assignment and averaging.
        generator: source of randomness on the CPU.

    Returns:
        The centres `[clusters, D]`, float32.
    """
    vectors = vectors.detach().float()

    def draw(count: int) -> Tensor:
        n = vectors.shape[0]
        if count <= n:
            return vectors[torch.randperm(n, generator=generator)[:count].to(vectors.device)]
        picked = vectors[torch.randint(n, (count,), generator=generator).to(vectors.device)]
        noise = torch.randn(picked.shape, generator=generator).to(picked)
        return picked + 0.01 * vectors.std() * noise

    centres = draw(clusters)
    for _ in range(iterations):
        labels = nearest_code(vectors, centres)
        counts = torch.bincount(labels, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, labels, vectors)
        empty = counts == 0
        centres = torch.where(empty[:, None], draw(clusters), sums / counts.clamp_min(1)[:, None])
    return centres


class VectorQuantizer(nn.Module):
    """Replace each vector of a map by the nearest of M codes (paper section 3.2).

    ```
    l [B, D, H, W] -> argmin_m |l - e_m| -> indices [B, H, W] -> e_m [B, D, H, W]
    ```

    The codebook is a plain parameter by default, as in the published networks. With `projected=True` the
    codes are `e = W v + b` of fixed random vectors v, of which only W and b are learned: a gradient to one
    code moves all of them, so unused codes follow the data and the codebook does not collapse (SimVQ,
    Zhu et al. 2024). `codebook()` gives the codes in either case.

    Args:
        size: M, the number of codes.
        dim: D, the length of a code.
        projected: learn a linear map of fixed vectors instead of the codes themselves.
    """

    initialized: Tensor
    """Boolean scalar: whether the codes were placed on data, or trained; checkpoints carry it."""

    def __init__(self, size: int, dim: int, projected: bool = False) -> None:
        super().__init__()
        self.size = size
        self.dim = dim
        self.projection: nn.Linear | None = None
        if projected:
            self.projection = nn.Linear(dim, dim)
            self.register_buffer("embedding", torch.randn(size, dim) / dim**0.5)
        else:
            self.embedding = nn.Parameter(torch.empty(size, dim).uniform_(-1 / size, 1 / size))
        self.register_buffer("initialized", torch.tensor(False))

    def codebook(self) -> Tensor:
        """Return the codes `[M, D]`, at their own precision whatever the surrounding one."""
        if self.projection is None:
            return self.embedding
        with full_float32(self.embedding.device):
            return self.projection(self.embedding)

    @torch.no_grad()
    def fold(self) -> None:
        """Make a projected codebook a plain one of the same codes."""
        if self.projection is not None:
            codes = self.codebook().clone()
            self.projection = None
            del self.embedding
            self.embedding = nn.Parameter(codes)

    @classmethod
    def baked(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state of a quantizer with its codebook made a plain one, see `fold`."""
        size, dim = state["embedding"].shape
        quantizer = cls(size, dim, projected="projection.weight" in state)
        quantizer.load_state_dict(state)
        quantizer.fold()
        return quantizer.state_dict()

    def forward(self, x: Tensor) -> Quantized:
        """Quantise a map `[B, D, H, W]`."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            codebook = self.codebook().float()
            indices = self._search(x, codebook)
            codes = F.embedding(indices, codebook).permute(0, 3, 1, 2)
            return Quantized(x + (codes - x).detach(), codes, indices)

    def encode(self, x: Tensor) -> Tensor:
        """Return the indices `[B, H, W]` of the codes nearest to a map `[B, D, H, W]`."""
        return self._search(x, self.codebook())

    def decode(self, indices: Tensor) -> Tensor:
        """Return the codes `[B, D, H, W]` at indices `[B, H, W]`."""
        return F.embedding(indices, self.codebook()).permute(0, 3, 1, 2)

    @torch.no_grad()
    def initialize(
        self, vectors: Tensor, iterations: int = 10, generator: torch.Generator | None = None
    ) -> None:
        """Place the codes on data `[N, D]` by k-means.

        A projected codebook keeps its spread of fixed vectors, scaled and shifted to the data's.
        """
        self.initialized.fill_(True)
        if self.projection is None:
            self.embedding.copy_(kmeans(vectors, self.size, iterations, generator))
            return
        vectors = vectors.detach().float()
        mean, std = vectors.mean(0), vectors.std(0) + 1e-6
        self.projection.weight.copy_(torch.diag(std * self.dim**0.5))
        self.projection.bias.copy_(mean)

    @staticmethod
    def _search(x: Tensor, codebook: Tensor) -> Tensor:
        b, d, h, w = x.shape
        return nearest_code(x.permute(0, 2, 3, 1).reshape(-1, d), codebook).view(b, h, w)
