import pytest
import torch
from torch import nn

from glc.models.discriminator import PatchDiscriminator


def seen_by(module: PatchDiscriminator, side: int, row: int, col: int) -> tuple[int, int, int, int]:
    """First and last row and column of the pixels that a logit depends on."""
    x = torch.randn(1, 3, side, side, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[0, 0, row, col], x)
    seen = (gradient != 0).any(1)[0]
    rows, cols = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    return int(rows[0]), int(rows[-1]), int(cols[0]), int(cols[-1])


@pytest.mark.parametrize(("layers", "patch", "outside"), [(1, 16, 5), (2, 34, 11), (3, 70, 23)])
def test_patches_have_their_size_stride_and_place(layers: int, patch: int, outside: int) -> None:
    module = PatchDiscriminator(4, layers, "none")
    stride, side = 2**layers, 128
    assert module(torch.randn(2, 3, side, 96)).shape == (2, 1, side // stride - 2, 96 // stride - 2)
    middle = (side // stride - 2) // 2
    top, bottom, left, right = seen_by(module, side, middle, middle + 1)
    assert bottom - top + 1 == right - left + 1 == patch
    assert (top, left) == (stride * middle - outside, stride * (middle + 1) - outside)


@pytest.mark.parametrize(("norm", "mixes"), [("batch", True), ("group", False), ("none", False)])
def test_only_batch_statistics_mix_images_and_only_in_training(norm: str, mixes: bool) -> None:
    module = PatchDiscriminator(8, 2, norm)
    x = torch.randn(2, 3, 32, 32)
    changed = torch.cat((x[:1], 3 * torch.randn(1, 3, 32, 32) + 1))
    assert torch.allclose(module(x)[0], module(changed)[0], atol=1e-5) != mixes
    module.eval()
    torch.testing.assert_close(module(x)[0], module(changed)[0])


def test_widths_double_up_to_eightfold() -> None:
    widths = [m.out_channels for m in PatchDiscriminator(4, 5).modules() if isinstance(m, nn.Conv2d)]
    assert widths == [4, 8, 16, 32, 32, 32, 1]


def test_published_size() -> None:
    # Isola et al.'s 70-pixel classifier C64-C128-C256-C512, biases only where no norm follows.
    convolutions = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    others = 64 + 2 * (128 + 256 + 512) + 1
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == convolutions + others


def test_other_norms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch, group or none.*'layer'"):
        PatchDiscriminator(norm="layer")
