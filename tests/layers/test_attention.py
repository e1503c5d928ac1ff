import pytest
import torch
from torch import Tensor

from glc.layers.attention import WindowAttention, merge_windows, partition_windows


def naive(module: WindowAttention, x: Tensor, window: int | None) -> Tensor:
    """Reference attention: one image, one window, one query at a time."""
    h = module.norm(x)
    query, key, value = module.query(h), module.key(h), module.value(h)
    height, width = x.shape[-2:]
    side = max(height, width) if window is None else window
    images = []
    for b in range(len(x)):
        rows = []
        for top in range(0, height, side):
            row = []
            for left in range(0, width, side):
                q, k, v = (m[b, :, top : top + side, left : left + side] for m in (query, key, value))
                size = q.shape
                q, k, v = q.flatten(1), k.flatten(1), v.flatten(1)
                out = [v @ (q[:, i] @ k / q.shape[0] ** 0.5).softmax(0) for i in range(q.shape[1])]
                row.append(torch.stack(out, 1).view(size))
            rows.append(torch.cat(row, 2))
        images.append(torch.cat(rows, 1))
    return x + module.out(torch.stack(images))


CASES = [
    pytest.param(4, (8, 12), id="tiles exactly"),
    pytest.param(4, (7, 10), id="ragged edges"),
    pytest.param(4, (9, 3), id="one side smaller than the window"),
    pytest.param(16, (5, 6), id="window larger than the map"),
    pytest.param(1, (3, 2), id="windows of one position"),
    pytest.param(None, (5, 7), id="global"),
]


@pytest.mark.parametrize(("window", "size"), CASES)
def test_equals_a_loop_over_windows(window: int | None, size: tuple[int, int]) -> None:
    module = WindowAttention(8, window, "pixel").double().eval()
    x = torch.randn(2, 8, *size, dtype=torch.double, requires_grad=True)
    expected, actual = naive(module, x, window), module(x)
    torch.testing.assert_close(actual, expected)
    weights = torch.randn_like(expected)
    inputs = [x, *module.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad((actual * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
    )


def test_attention_is_global_in_training() -> None:
    module = WindowAttention(8, 2).double()
    x = torch.randn(2, 8, 5, 6, dtype=torch.double)
    trained = module.train()(x)
    torch.testing.assert_close(trained, naive(module, x, None))
    assert not torch.allclose(trained, module.eval()(x))


@pytest.mark.parametrize("size", [(6, 4), (5, 3), (1, 9)])
def test_merge_inverts_partition_and_mask_marks_positions(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    tokens, mask = partition_windows(x, 2)
    torch.testing.assert_close(merge_windows(tokens, 2, size), x, rtol=0, atol=0)
    if mask is None:
        assert size == (6, 4)
    else:
        assert mask.shape == tokens.shape[:2]
        assert mask.sum() == 2 * size[0] * size[1]
        assert (tokens[~mask] == 0).all()
        assert (tokens[mask] != 0).all()


def test_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        WindowAttention(4, 0)
