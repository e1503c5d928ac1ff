import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glc.metrics.codebook import CodebookUsage
from glc.models.quantizer import FiniteScalarQuantizer, VectorQuantizer, kmeans, nearest_code


class LargestTensor(TorchDispatchMode):
    """Remembers the size in bytes of the largest tensor that any operation returned."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.bytes = max(self.bytes, leaf.numel() * leaf.element_size())
        return out


def quantizer(projected: bool, size: int = 32, dim: int = 6) -> VectorQuantizer:
    module = VectorQuantizer(size, dim, projected)
    if not projected:
        torch.nn.init.normal_(module.embedding)
    return module


both = pytest.mark.parametrize("projected", [False, True], ids=["plain", "projected"])


@pytest.mark.parametrize("max_bytes", [1, 1000, 1 << 28])
def test_nearest_code_equals_brute_force_for_any_chunk_size(max_bytes: int) -> None:
    vectors, codes = torch.randn(301, 7), torch.randn(50, 7)
    expected = torch.cdist(vectors.double(), codes.double()).argmin(1)
    assert torch.equal(nearest_code(vectors, codes, max_bytes), expected)
    none = nearest_code(vectors[:0], codes, max_bytes)
    assert (none.shape, none.dtype) == ((0,), torch.int64)


def test_nearest_code_limits_the_memory_of_distances() -> None:
    vectors, codes = torch.randn(5000, 2), torch.randn(64, 2)
    inputs = 4 * vectors.numel()
    for limit in (50_000, 100_000):
        with LargestTensor() as largest:
            nearest_code(vectors, codes, limit)
        assert largest.bytes <= max(limit, inputs)
    with LargestTensor() as largest:  # the check sees a full matrix of distances when there is one
        nearest_code(vectors, codes)
    assert largest.bytes == 4 * 5000 * 64


def test_training_keeps_no_matrix_of_vectors_by_codes() -> None:
    module = quantizer(False, size=256, dim=4)
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    full = 256 * 16 * 16
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):
        out = module(x)
        loss = out.quantized.square().sum() + out.codes.square().sum()
    loss.backward()
    assert max(saved) < full


@both
def test_autocast_does_not_change_the_indices(projected: bool) -> None:
    # 512 codes close together: rounding distances or a projection to bfloat16 would pick others.
    module = quantizer(projected, size=512, dim=8)
    x = 0.5 * torch.randn(2, 8, 16, 16)
    expected = torch.cdist(x.permute(0, 2, 3, 1).reshape(-1, 8), module.codebook()).argmin(1).view(2, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
        encoded = module.encode(x)
        decoded = module.decode(expected)
    assert torch.equal(out.indices, expected)
    assert torch.equal(encoded, expected)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, module.decode(expected), rtol=0, atol=0)
    half = x.bfloat16()
    assert torch.equal(module(half).indices, module(half.float()).indices)


def tf32_is_allowed() -> bool:
    products = torch.backends.cuda.matmul
    known = getattr(products, "fp32_precision", None)  # torch 2.9 and later
    return products.allow_tf32 if known is None else known != "ieee"


class Products(TorchFunctionMode):
    """Notes whether a GPU could shorten the factors of a matrix product."""

    def __init__(self) -> None:
        self.allowed: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.addmm, torch.nn.functional.linear):
            self.allowed.append(tf32_is_allowed())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("allowed", ["high", "medium"])
def test_codebook_and_search_do_not_use_tf32(allowed: str) -> None:
    module = quantizer(projected=True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        with Products() as products:
            module(torch.randn(1, 6, 4, 4))
        assert products.allowed == [False, False]
        assert tf32_is_allowed()
        with pytest.raises(RuntimeError):
            nearest_code(torch.randn(2, 3), torch.randn(2, 4))
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision(before)


@both
def test_values_shapes_and_round_trip(projected: bool) -> None:
    module = quantizer(projected)
    x = torch.randn(2, 6, 3, 5)
    out = module(x)
    assert out.quantized.shape == out.codes.shape == x.shape
    assert out.indices.shape == (2, 3, 5)
    assert out.indices.dtype == torch.int64
    torch.testing.assert_close(out.quantized, out.codes)
    assert torch.equal(out.codes[1, :, 2, 4], module.codebook()[out.indices[1, 2, 4]])
    assert torch.equal(module.encode(x), out.indices)
    assert torch.equal(module.decode(out.indices), out.codes)
    assert torch.equal(module.encode(module.decode(out.indices)), out.indices)


@both
def test_gradients_go_straight_through_or_to_the_codebook(projected: bool) -> None:
    module = quantizer(projected)
    x = torch.randn(2, 6, 3, 5, requires_grad=True)
    weights = torch.randn_like(x)
    learned = list(module.parameters())

    out = module(x)
    through = torch.autograd.grad((out.quantized * weights).sum(), [x, *learned], allow_unused=True)
    assert torch.equal(through[0], weights)
    assert all(gradient is None for gradient in through[1:])

    out = module(x)
    to_codes = torch.autograd.grad((out.codes * weights).sum(), [x, *learned], allow_unused=True)
    assert to_codes[0] is None
    assert all(gradient.abs().sum() > 0 for gradient in to_codes[1:])
    if not projected:
        rows = weights.permute(0, 2, 3, 1).reshape(-1, 6)
        expected = torch.zeros(32, 6).index_add_(0, out.indices.flatten(), rows)
        torch.testing.assert_close(to_codes[1], expected)


def test_projected_codebook_moves_jointly_and_keeps_its_vectors() -> None:
    module = quantizer(True)
    before, vectors = module.codebook().detach().clone(), module.embedding.clone()
    assert "embedding" not in dict(module.named_parameters())
    assert "embedding" in module.state_dict()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(torch.randn(1, 6, 1, 1)).codes.square().sum().backward()  # one code is used
    optimizer.step()
    assert torch.equal(module.embedding, vectors)
    assert (module.codebook() != before).any(1).all()


@both
def test_bake_keeps_the_codewords(projected: bool) -> None:
    module = quantizer(projected)
    codes = module.codebook().detach().clone()
    baked = VectorQuantizer.baked(module.state_dict())
    module.bake()
    assert torch.equal(module.codebook(), codes)
    assert baked.keys() == module.state_dict().keys()
    assert all(torch.equal(baked[name], tensor) for name, tensor in module.state_dict().items())
    plain = VectorQuantizer(32, 6)
    plain.load_state_dict(module.state_dict())  # strict: no projection is left
    assert torch.equal(plain.codebook(), codes)
    assert [name for name, _ in module.named_parameters()] == ["embedding"]


def blobs(count: int = 60) -> tuple[Tensor, Tensor]:
    """Four groups of points around the corners of a square of side 20, and the corners."""
    corners = torch.tensor([[-10.0, -10.0], [-10.0, 10.0], [10.0, -10.0], [10.0, 10.0]])
    return (corners[:, None] + torch.randn(4, count, 2)).flatten(0, 1), corners


def test_kmeans_covers_separated_clusters() -> None:
    points, _ = blobs()
    # In half precision, and still the centres are in full.
    half = points.bfloat16().requires_grad_()
    centres = kmeans(half, 16, generator=torch.Generator().manual_seed(0))
    assert (centres.dtype, centres.requires_grad) == (torch.float32, False)
    assert torch.cdist(points, centres).min(1).values.max() < 4
    assert torch.cdist(centres, points).min(1).values.max() < 4  # and none lies between them


def test_kmeans_ends_at_the_means_of_its_clusters() -> None:
    points, corners = blobs()
    centres = kmeans(points, 6, iterations=60, generator=torch.Generator().manual_seed(1))
    labels = torch.cdist(points, centres).argmin(1)
    means = torch.stack([points[labels == i].mean(0) for i in range(6)])
    torch.testing.assert_close(centres, means)
    first = kmeans(points, 6, iterations=0, generator=torch.Generator().manual_seed(1))
    error, before = (torch.cdist(points, c).min(1).values.square().mean() for c in (centres, first))
    assert error < before
    assert torch.cdist(corners, centres).min(1).values.max() < 2


@pytest.mark.parametrize("seed", range(8))
def test_kmeans_restarts_empty_clusters(seed: int) -> None:
    # Both first centres are often the same point; the second one then never wins a vector.
    points = torch.tensor([[0.0, 1.0], [5.0, -2.0]]).repeat_interleave(40, 0)
    centres = kmeans(points, 2, iterations=20, generator=torch.Generator().manual_seed(seed))
    assert sorted(centres.tolist()) == [[0.0, 1.0], [5.0, -2.0]]


def test_kmeans_with_more_clusters_than_vectors_and_with_a_seed() -> None:
    points = torch.randn(5, 3)
    centres = kmeans(points, 12, generator=torch.Generator().manual_seed(3))
    assert centres.shape == (12, 3)
    assert torch.isfinite(centres).all()
    assert torch.cdist(centres, points).min(1).values.max() < 0.2
    torch.manual_seed(99)  # only the generator decides
    again = kmeans(points, 12, generator=torch.Generator().manual_seed(3))
    assert torch.equal(centres, again)


def test_initialize_places_codewords_on_the_data() -> None:
    points, _ = blobs()
    module = VectorQuantizer(16, 2)
    before = module.embedding
    assert not module.initialized
    module.initialize(points, generator=torch.Generator().manual_seed(0))
    assert module.initialized
    assert module.embedding is before  # an optimizer may hold it
    assert module.embedding.requires_grad
    used = module.encode(points.T.view(1, 2, 1, -1)).unique()
    assert len(used) == 16
    loaded = VectorQuantizer(16, 2)
    loaded.load_state_dict(module.state_dict())
    assert loaded.initialized


def test_initialize_matches_a_projected_codebook_to_mean_and_std() -> None:
    wanted_mean, wanted_std = torch.tensor([5.0, -3.0, 0.0]), torch.tensor([0.1, 2.0, 1.0])
    module = VectorQuantizer(4096, 3, projected=True)
    module.initialize(wanted_mean + wanted_std * torch.randn(8192, 3))
    assert module.initialized
    codes = module.codebook().detach()
    torch.testing.assert_close(codes.mean(0), wanted_mean, atol=0.15, rtol=0)
    torch.testing.assert_close(codes.std(0), wanted_std, atol=0.01, rtol=0.05)


def test_finite_scalars_are_rounded_to_the_levels_of_their_channel() -> None:
    """An even count (-1, -1/3, 1/3, 1) and an odd one (-1, 0, 1), by hand."""
    module = FiniteScalarQuantizer(12, 2, [4, 3])
    x = torch.tensor([[-0.99, -0.7], [-0.6, -0.4], [0.1, 0.4], [0.7, 0.6], [-9.0, 9.0]]).T.view(1, 2, 5, 1)
    out = module(x)
    third = 1 / 3
    expected = torch.tensor([[-1, -1], [-third, 0], [third, 0], [1, 1], [-1, 1]]).T.view(1, 2, 5, 1)
    torch.testing.assert_close(out.quantized, expected)
    # number in channel 0 + 4 x number in channel 1
    assert out.indices.flatten().tolist() == [0, 1 + 4, 2 + 4, 3 + 8, 0 + 8]
    assert out.indices.dtype == torch.int64
    assert torch.equal(module.decode(out.indices), module.codebook()[out.indices].permute(0, 3, 1, 2))


@pytest.mark.parametrize("levels", [[2], [3], [4, 4, 4], [5, 2, 3], [8, 5, 5, 5]])
def test_every_index_of_a_grid_decodes_to_a_vector_of_that_index(levels: list[int]) -> None:
    size = torch.tensor(levels).prod().item()
    module = FiniteScalarQuantizer(int(size), len(levels), levels)
    indices = torch.arange(int(size)).view(1, 1, -1)
    vectors = module.decode(indices)
    assert torch.equal(module.encode(vectors), indices)
    # Small deviations, to just below half a level, change nothing.
    step = 2 / (torch.tensor(levels) - 1).view(1, -1, 1, 1)
    assert torch.equal(module.encode(vectors + 0.49 * step), indices)
    assert torch.equal(module.encode(vectors - 0.49 * step), indices)
    codes = module.codebook()
    assert len(codes.unique(dim=0)) == size
    assert codes.min() == -1
    assert codes.max() == 1
    # The nearest codeword is the same one.
    x = torch.rand(2, len(levels), 9, 9) * 2 - 1
    nearest = nearest_code(x.permute(0, 2, 3, 1).reshape(-1, len(levels)), codes)
    assert torch.equal(module.encode(x).flatten(), nearest)


def test_uniform_vectors_use_all_codewords_of_a_grid() -> None:
    module, usage = FiniteScalarQuantizer(1024, 5, [4] * 5), CodebookUsage(1024)
    # Cells at the ends are half as wide as the others: each of 4 levels has 1/6 or 1/3.
    usage.update(module.encode(torch.rand(64, 5, 32, 32) * 2 - 1))
    found = usage.compute()
    assert found["usage"] == 1
    entropy = -5 * (2 / 6 * math.log(1 / 6) + 2 / 3 * math.log(1 / 3))
    assert found["perplexity"] == pytest.approx(math.exp(entropy), rel=0.02)


def test_finite_scalars_fill_more_channels_by_repetition() -> None:
    module = FiniteScalarQuantizer(6, 5, [3, 2])
    x = torch.tensor([0.1, 0.2]).view(1, 2, 1, 1)
    assert module(x).quantized.flatten().tolist() == [0, 1, 0, 1, 0]
    assert module.codebook().shape == (6, 5)
    assert torch.equal(module.encode(module.decode(torch.arange(6).view(1, 2, 3))).flatten(), torch.arange(6))


def test_finite_scalars_pass_gradients_straight_through_and_have_nothing_to_learn() -> None:
    module = FiniteScalarQuantizer(6, 5, [3, 2])
    x = (torch.rand(2, 2, 3, 4) * 2 - 1).requires_grad_()
    weights = torch.randn(2, 5, 3, 4)
    out = module(x)
    (gradient,) = torch.autograd.grad((out.quantized * weights).sum(), [x])
    expected = torch.stack([weights[:, [0, 2, 4]].sum(1), weights[:, [1, 3]].sum(1)], 1)
    torch.testing.assert_close(gradient, expected)
    assert out.codes is None
    assert list(module.parameters()) == []
    before = module.codebook().clone()
    module.initialize(torch.randn(50, 5))
    module.bake()
    assert torch.equal(module.codebook(), before)
    assert module.initialized


def test_autocast_does_not_change_finite_scalars() -> None:
    module = FiniteScalarQuantizer(8**4, 4, [8, 8, 8, 8])
    x = torch.rand(2, 4, 16, 16) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert torch.equal(out.indices, module.encode(x))
    assert out.quantized.dtype == torch.float32


@pytest.mark.parametrize(
    ("size", "dim", "levels", "complaint"),
    [
        (
            1024,
            4,
            [8, 5, 5, 5],
            r"levels \[8, 5, 5, 5\] make 1000 codewords, not 1024: set the codebook's size",
        ),
        (4, 1, [2, 2], "2 levels need at least as many channels, not 1"),
        (4, 2, [4, 1], "each at least 2"),
        (1, 2, [], "give at least one"),
    ],
)
def test_levels_that_do_not_fit_are_refused(size: int, dim: int, levels: list[int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        FiniteScalarQuantizer(size, dim, levels)
