import pytest
import torch
from torch import nn

from glc.layers.normalization import PixelNorm, make_norm


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
