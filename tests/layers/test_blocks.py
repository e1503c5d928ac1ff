from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glc.layers.blocks import (
    DepthConv,
    DepthConvBlock,
    Downsample,
    GatedDepthConv,
    GatedDepthConvBlock,
    GatedFeedForward,
    PixelNorm,
    ResidualBlock,
    SubpixelUpsample,
    Upsample,
    WindowAttention,
    make_norm,
    merge_windows,
    partition_windows,
)


def test_pixel_norm_applies_gain_then_bias_per_channel() -> None:
    norm = PixelNorm(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.0, 0.5, 10.0]))
    x = torch.tensor([3.0, 4.0, 0.0]).view(1, 3, 1, 1)
    rms = (25 / 3) ** 0.5
    expected = torch.tensor([3 / rms, 8 / rms + 0.5, 10.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_pixel_norm_is_local_and_group_norm_is_not() -> None:
    x = torch.randn(1, 8, 4, 4)
    changed = x.clone()
    changed[:, :, 1, 2] *= -3
    for kind, local in (("pixel", True), ("group", False)):
        norm = make_norm(kind, 8)
        moved = (norm(changed) != norm(x)).any(1)[0]
        assert moved[1, 2]
        assert (moved.sum() == 1) == local


def test_pixel_norm_keeps_the_dtype_and_maps_zeros_to_zeros() -> None:
    out = PixelNorm(4)(torch.zeros(1, 4, 2, 2, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert (out == 0).all()


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (24, 8), (7, 1)])
def test_group_count_is_the_gcd_of_channels_and_32(channels: int, groups: int) -> None:
    norm = make_norm("group", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups
    x = torch.randn(2, channels, 5, 5) * 3 + 1
    grouped = norm(x).view(2, groups, -1)
    torch.testing.assert_close(grouped.mean(2), torch.zeros(2, groups), atol=1e-5, rtol=0)
    torch.testing.assert_close(grouped.var(2, correction=0), torch.ones(2, groups), atol=1e-3, rtol=0)


def test_none_is_the_identity_and_unknown_kinds_are_refused() -> None:
    x = torch.randn(1, 4, 2, 2)
    assert torch.equal(make_norm("none", 4)(x), x)
    with pytest.raises(ValueError, match=r"group, pixel or none.*'layer'"):
        make_norm("layer", 4)


def receptive_field(module: nn.Module, x: Tensor, row: int, col: int) -> tuple[int, int, int, int]:
    """Return first and last row and column of x that one output position depends on."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(x)[..., row, col].sum(), x)
    seen = (gradient != 0).any(0).any(0)
    rows, cols = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    return int(rows[0]), int(rows[-1]), int(cols[0]), int(cols[-1])


def test_downsampling_pads_below_and_right_only() -> None:
    module, x = Downsample(2), torch.randn(1, 2, 6, 8)
    assert module(x).shape == (1, 2, 3, 4)
    assert receptive_field(module, x, 0, 0) == (0, 2, 0, 2)  # unpadded at the upper left
    assert receptive_field(module, x, 2, 3) == (4, 5, 6, 7)  # cut off at the lower right


def test_upsampling_repeats_then_convolves() -> None:
    module, x = Upsample(2), torch.randn(1, 2, 3, 3)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(module(x), module.conv(repeated))


@pytest.mark.parametrize("make", [DepthConv, DepthConvBlock, GatedDepthConv, GatedDepthConvBlock])
def test_depthwise_blocks_have_a_3x3_receptive_field(make: Callable[[int, int], nn.Module]) -> None:
    assert receptive_field(make(4, 6), torch.randn(1, 4, 7, 7), 3, 3) == (2, 4, 2, 4)


@pytest.mark.parametrize("make", [ResidualBlock, DepthConv, GatedDepthConv])
@pytest.mark.parametrize("width", [4, 6])
def test_residual_blocks_add_their_input(make: Callable[[int, int], nn.Module], width: int) -> None:
    module = make(4, width)
    last = module.conv2 if isinstance(module, ResidualBlock) else module.project
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    x = torch.randn(2, 4, 5, 5)
    expected = x if width == 4 else F.conv2d(x, module.skip.weight, module.skip.bias)
    torch.testing.assert_close(module(x), expected)


def test_gated_feed_forward_equals_hand_computed_values() -> None:
    module = GatedFeedForward(1)
    with torch.no_grad():
        module.expand.weight.copy_(torch.tensor([1.0, 2.0, 3.0, -1.0]).view(4, 1, 1, 1))
        module.expand.bias.zero_()
        module.project.weight.copy_(torch.tensor([1.0, 10.0]).view(1, 2, 1, 1))
        module.project.bias.fill_(0.5)
    # x = 2: values 2 and 4, gates 6 and leaky(-2) = -0.2: 2 + 12 - 8 + 0.5
    torch.testing.assert_close(module(torch.full((1, 1, 1, 1), 2.0)), torch.full((1, 1, 1, 1), 6.5))


def test_gated_depth_conv_with_zero_gate_is_the_identity() -> None:
    module = GatedDepthConv(4, 4)
    with torch.no_grad():
        module.gate.weight.zero_()
        module.gate.bias.zero_()
        module.project.bias.zero_()
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(module(x), x)


def test_subpixel_upsampling_has_a_3x3_receptive_field_after_the_shuffle() -> None:
    module, x = SubpixelUpsample(3, 2), torch.randn(1, 3, 5, 4)
    assert module(x).shape == (1, 2, 10, 8)
    assert receptive_field(module, x, 4, 4) == (1, 2, 1, 2)
    assert receptive_field(module, x, 5, 5) == (2, 3, 2, 3)


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
    for got, want in zip(
        torch.autograd.grad((actual * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


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
