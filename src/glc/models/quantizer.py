"""Vector and finite scalar quantisation: nearest-codeword search and codebooks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """Output of a quantiser for a map `[B, D, H, W]`."""

    quantized: Tensor
    """`[B, D, H, W]`: the codewords, with a straight-through gradient to the input."""
    codes: Tensor | None
    """`[B, D, H, W]`: the codewords, with the gradient to the codebook instead; None if it is fixed."""
    indices: Tensor
    """`[B, H, W]`, int64 in `[0, M)`."""


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute in IEEE float32: without autocast, and without a GPU's TF32 (10-bit mantissa).

    Training runs allow TF32. With latents of a mean far from zero, it selects another codeword for one in
    five.
    """
    products = torch.backends.cuda.matmul
    # torch 2.9 renamed the setting.
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
    """Return the index of the nearest codeword (Euclidean distance) of each vector.

    Distances are computed in float32 at any surrounding precision (bfloat16 and TF32 select wrong codewords),
    and in chunks of vectors that limit the memory. No one-hot matrix is built.

    Args:
        vectors: `[N, D]`.
        codebook: `[M, D]`.
        max_bytes: memory limit of the distances in a chunk.

    Returns:
        `[N]`, int64 in `[0, M)`.
    """
    with torch.no_grad(), full_float32(vectors.device):
        vectors, codes = vectors.detach().float(), codebook.detach().float()
        # |v - e|^2 = |v|^2 - 2 v.e + |e|^2; the first term does not affect the argmin.
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
        clusters: the number of centres; above N, vectors are repeated with a little noise.
        iterations: rounds of assignment and averaging.
        generator: random generator on the CPU.

    Returns:
        The centres `[clusters, D]`, float32.
    """
    vectors = vectors.detach().float()

    def sample(count: int) -> Tensor:
        n = vectors.shape[0]
        if count <= n:
            return vectors[torch.randperm(n, generator=generator)[:count].to(vectors.device)]
        picked = vectors[torch.randint(n, (count,), generator=generator).to(vectors.device)]
        noise = torch.randn(picked.shape, generator=generator).to(picked)
        return picked + 0.01 * vectors.std() * noise

    centres = sample(clusters)
    for _ in range(iterations):
        labels = nearest_code(vectors, centres)
        counts = torch.bincount(labels, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, labels, vectors)
        empty = counts == 0
        centres = torch.where(empty[:, None], sample(clusters), sums / counts.clamp_min(1)[:, None])
    return centres


class VectorQuantizer(nn.Module):
    """Replace each vector of a map by the nearest of M codewords (paper section 3.2).

    ```
    l [B, D, H, W] -> argmin_m |l - e_m| -> indices [B, H, W] -> e_m [B, D, H, W]
    ```

    By default the codebook is a parameter. With `projected=True` the codewords are `e = W v + b` of fixed
    random vectors v, and only W and b are learned: a gradient to one codeword moves all of them, so that
    unused codewords follow the data and the codebook does not collapse (SimVQ, Zhu et al. 2024). `codebook()`
    returns the codewords in both cases.

    Args:
        size: M, the number of codewords.
        dim: D, the length of a codeword.
        projected: learn a linear map of fixed vectors instead of the codewords.
    """

    initialized: Tensor
    """Boolean scalar: whether the codewords were initialised on data or trained; in the state dict."""

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
        """Return the codewords `[M, D]`, at their own precision also under autocast."""
        if self.projection is None:
            return self.embedding
        with full_float32(self.embedding.device):
            return self.projection(self.embedding)

    @torch.no_grad()
    def bake(self) -> None:
        """Replace a projected codebook by a plain one with the same codewords."""
        if self.projection is not None:
            codes = self.codebook().clone()
            self.projection = None
            del self.embedding
            self.embedding = nn.Parameter(codes)

    @classmethod
    def baked(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict of a quantizer after `bake`."""
        size, dim = state["embedding"].shape
        quantizer = cls(size, dim, projected="projection.weight" in state)
        quantizer.load_state_dict(state)
        quantizer.bake()
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
        """Return the codeword indices `[B, H, W]` of a map `[B, D, H, W]`."""
        return self._search(x, self.codebook())

    def decode(self, indices: Tensor) -> Tensor:
        """Return the codewords `[B, D, H, W]` at indices `[B, H, W]`."""
        return F.embedding(indices, self.codebook()).permute(0, 3, 1, 2)

    @torch.no_grad()
    def initialize(
        self, vectors: Tensor, iterations: int = 10, generator: torch.Generator | None = None
    ) -> None:
        """Initialise the codewords on data `[N, D]` by k-means.

        A projected codebook keeps its fixed vectors; W and b are set to the data's standard deviation and
        mean.
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


class FiniteScalarQuantizer(VectorQuantizer):
    """Round each channel of a map in [-1, 1] to one of a few levels (FSQ, Mentzer et al. 2024).

    ```
    u [B, d, H, W] in [-1, 1] -> nearest of L_i equidistant levels from -1 to 1 in channel i
      -> their numbers as digits, channel 0 the lowest -> indices [B, H, W] -> codewords [B, D, H, W]
    ```

    The codebook is the grid of all combinations. It is fixed: it has no parameters, needs no codebook loss
    and no restart, and cannot collapse by itself. The network before it bounds u (by tanh), so that u is at
    most half a level from its codeword. Levels are symmetric, where the published code shifts even counts by
    half a level, so that one is 0. A codeword repeats its d values to fill D channels. The learned
    projections to and from d channels are the layers before and after.

    Args:
        size: M, the product of the levels.
        dim: D, at least d.
        levels: L_i, at least 2, for each of the d channels.

    Raises:
        ValueError: the arguments do not fit.
    """

    def __init__(self, size: int, dim: int, levels: Sequence[int]) -> None:
        nn.Module.__init__(self)  # no learned codewords
        if not levels or min(levels) < 2:
            raise ValueError(f"levels: give at least one, each at least 2, not {list(levels)}")
        if math.prod(levels) != size:
            raise ValueError(
                f"levels {list(levels)} make {math.prod(levels)} codewords, not {size}: "
                "set the codebook's size to their product"
            )
        if dim < len(levels):
            raise ValueError(f"{len(levels)} levels need at least as many channels, not {dim}")
        self.size = size
        self.dim = dim
        self.levels = tuple(levels)
        self.projection = None
        self.register_buffer("embedding", torch.empty(size, dim))
        if not self.embedding.is_meta:  # else a file has the values
            self.embedding.copy_(self._repeat(self._grid()))
        self.register_buffer("initialized", torch.tensor(True))

    def forward(self, x: Tensor) -> Quantized:
        """Quantise a map `[B, d, H, W]` in [-1, 1] to codewords of D channels."""
        with torch.autocast(x.device.type, enabled=False):
            indices = self.encode(x)
            codes, x = self.decode(indices), self._repeat(x.float())
            return Quantized(x + (codes - x).detach(), None, indices)

    def encode(self, x: Tensor) -> Tensor:
        """Return the codeword indices `[B, H, W]` of a map of at least d channels; d of them count."""
        indices = torch.zeros_like(x[:, 0], dtype=torch.long)
        for channel, levels in reversed(list(enumerate(self.levels))):
            number = (x[:, channel].float().clamp(-1, 1) + 1) * ((levels - 1) / 2)
            indices = indices * levels + number.round().long()
        return indices

    def initialize(
        self, vectors: Tensor, iterations: int = 10, generator: torch.Generator | None = None
    ) -> None:
        """Do nothing: the codewords are fixed."""

    def _grid(self) -> Tensor:
        """Return the codewords `[M, d]`."""
        # Divisions, correctly rounded on every machine: the values are part of a codec's fingerprint.
        values = [(2 * torch.arange(n) - (n - 1)) / (n - 1) for n in reversed(self.levels)]
        return torch.cartesian_prod(*values).view(self.size, -1).flip(1)

    def _repeat(self, x: Tensor) -> Tensor:
        """Return D channels of `[N, d, ...]`."""
        return x[:, torch.arange(self.dim, device=x.device) % len(self.levels)]
