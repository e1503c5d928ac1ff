from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glc.models.context import STEPS, QuadtreeContext, quadtree_masks
from glc.models.entropy import gaussian_bits

Decode = Callable[[QuadtreeContext, Tensor, Tensor], Tensor]
SIZES = [(4, 4), (6, 8), (5, 7), (1, 1), (1, 6)]


@pytest.mark.parametrize("size", SIZES)
def test_each_element_is_coded_at_exactly_one_step(size: tuple[int, int]) -> None:
    masks = quadtree_masks(8, *size)
    assert masks.shape == (STEPS, 1, 8, *size)
    assert masks.dtype == torch.bool
    assert (masks.sum(0) == 1).all()


def test_groups_code_different_positions_at_each_step_and_all_in_the_end() -> None:
    masks = quadtree_masks(12, 6, 4)[:, 0]
    for step in masks:
        groups = step.view(4, 3, 6, 4)
        assert (groups == groups[:, :1]).all()  # channels of a group go together
        assert (groups[:, 0].sum(0) == 1).all()  # no two groups at one position
        cell = groups[:, 0, :2, :2]
        assert (cell.sum((1, 2)) == 1).all()  # each group at one position of a cell
        assert torch.equal(groups[:, 0], cell.repeat(1, 3, 2))  # the same in every cell


def test_position_of_each_group_at_each_step() -> None:
    # What files and published weights were made with.
    order = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 0, 3, 2]]
    masks = quadtree_masks(4, 2, 2)[:, 0].flatten(2)
    assert masks.int().argmax(2).tolist() == order


class Constants(TorchDispatchMode):
    """Counts what is made of Python's numbers: on a GPU each is a copy that waits."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten.lift_fresh.default
        return func(*args, **(kwargs or {}))


def test_masks_are_computed_on_the_device() -> None:
    with Constants() as constants:
        assert quadtree_masks(8, 4, 4, torch.device("meta")).is_meta
        assert constants.count == 0
        torch.tensor([1], device="meta")
        assert constants.count == 1


def test_channels_must_be_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        quadtree_masks(6, 2, 2)
    with pytest.raises(ValueError, match="multiple of 4"):
        QuadtreeContext(10)


def example(size: tuple[int, int] = (6, 5)) -> tuple[QuadtreeContext, Tensor, Tensor]:
    context = QuadtreeContext(8, depth=2).eval()
    return context, 6 * torch.randn(2, 8, *size), torch.randn(2, 24, *size)


def test_output_fields_are_consistent() -> None:
    context, y, prior = example()
    out = context(y, prior)
    steps = prior[:, :8].clamp_min(0.5)
    assert torch.equal(out.symbols.detach(), out.symbols.detach().round())
    torch.testing.assert_close(out.symbols, (y / steps - out.means).round())
    torch.testing.assert_close(out.y_hat, (out.symbols + out.means) * steps)
    assert ((out.y_hat - y).abs() <= 0.5 * steps + 1e-5).all()
    assert (out.scales >= context.scale_bound).all()
    assert (out.scales == context.scale_bound).any()
    torch.testing.assert_close(out.bits, gaussian_bits(out.symbols, out.scales))
    assert out.symbols.abs().max() > 3  # the example has something to code


@pytest.mark.parametrize("size", SIZES)
def test_decoder_reconstructs_y_hat_from_symbols_and_prior(size: tuple[int, int], decode: Decode) -> None:
    context, y, prior = example(size)
    out = context(y, prior)
    torch.testing.assert_close(decode(context, prior, out.symbols), out.y_hat)


@pytest.mark.parametrize("k", range(STEPS))
def test_a_step_affects_only_later_steps(k: int) -> None:
    context, y, prior = example()
    masks = quadtree_masks(8, 6, 5)
    before = context(y, prior)
    after = context(y + 20 * torch.randn_like(y) * masks[k], prior)
    assert (after.symbols != before.symbols)[masks[k].expand_as(y)].float().mean() > 0.9
    for name in ("means", "scales"):
        moved = getattr(after, name) != getattr(before, name)
        for step, mask in enumerate(masks):
            changed = moved[mask.expand_as(y)]
            if step <= k:
                assert not changed.any()
            elif name == "means":
                assert changed.float().mean() > 0.5
            else:  # many scales lie at their bound
                assert changed.any()


def test_the_first_step_uses_only_the_prior() -> None:
    context, y, prior = example()
    out = context(y, prior)
    first = quadtree_masks(8, 6, 5)[0].expand_as(y)
    assert torch.equal(out.scales[first], prior[:, 8:16].clamp_min(context.scale_bound)[first])
    assert torch.equal(out.means[first], prior[:, 16:][first])


def test_noise_changes_only_bits_and_is_uniform() -> None:
    context, y, prior = example((32, 32))
    with torch.no_grad():
        plain, noisy = context(y, prior), context(y, prior, noise=True)
    for name in ("symbols", "y_hat", "means", "scales"):
        assert torch.equal(getattr(plain, name), getattr(noisy, name))
    assert not torch.equal(plain.bits, noisy.bits)
    # The bits are those of the residual moved by less than half a symbol.
    residual = (y / prior[:, :8].clamp_min(0.5) - plain.means).abs()
    least = gaussian_bits((residual - 0.5).clamp_min(0), plain.scales)
    most = gaussian_bits(residual + 0.5, plain.scales)
    assert (noisy.bits >= least - 1e-3).all()
    assert (noisy.bits <= most + 1e-3).all()


@pytest.mark.parametrize("noise", [False, True])
def test_rate_and_reconstruction_train_everything(noise: bool) -> None:
    context, y, prior = example()
    y.requires_grad_()
    prior.requires_grad_()
    out = context(y, prior, noise)
    wanted = [y, prior, *context.parameters()]
    gradients = torch.autograd.grad(out.bits.mean() + out.y_hat.square().mean(), wanted)
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)


def test_y_hat_passes_gradients_straight_to_y() -> None:
    context, y, prior = example()
    y.requires_grad_()
    weights = torch.randn_like(y)
    (gradient,) = torch.autograd.grad((context(y, prior).y_hat * weights).sum(), y)
    # y_hat = step * (round(y / step - mean) + mean): its own gradient is 1, and what the means of later steps
    # take from y_hat cancels, as they are subtracted and added again.
    torch.testing.assert_close(gradient, weights, atol=1e-4, rtol=1e-4)


def test_decode_mean_equals_decoding_zeros(decode: Decode) -> None:
    context, y, prior = example()
    expected = decode(context, prior, torch.zeros_like(y))
    torch.testing.assert_close(context.decode_mean(prior), expected)
    assert not torch.allclose(expected, prior[:, 16:] * prior[:, :8].clamp_min(0.5))
