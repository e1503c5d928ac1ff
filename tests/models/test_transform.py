import pytest
import torch

from glc.models.transform import Rate, RateScaler, RateTransform


@pytest.fixture
def scaler() -> RateScaler:
    module = RateScaler(4, 5)
    torch.nn.init.normal_(module.scale)
    return module


def test_integer_points_are_the_learned_scales(scaler: RateScaler) -> None:
    for point in range(4):
        for rate_index in (point, float(point), torch.tensor([point]), torch.tensor([float(point)])):
            assert torch.equal(scaler(rate_index), scaler.scale[point].view(1, 5, 1, 1))


def test_between_points_it_interpolates_linearly(scaler: RateScaler) -> None:
    s = scaler.scale
    torch.testing.assert_close(scaler(0.5).flatten(), (s[0] + s[1]) / 2)
    torch.testing.assert_close(scaler(2.25).flatten(), 0.75 * s[2] + 0.25 * s[3])


@pytest.mark.parametrize("rates", [[3, 0, 2, 2], [0.0, 2.9, 1.5, 3.0]])
def test_per_image_rates_equal_scalar_rates(scaler: RateScaler, rates: list[Rate]) -> None:
    together = scaler(torch.tensor(rates))
    assert together.shape == (4, 5, 1, 1)
    torch.testing.assert_close(together, torch.cat([scaler(rate_index) for rate_index in rates]))


def test_points_start_evenly_apart_around_one() -> None:
    assert torch.equal(RateScaler(3, 2).scale, torch.ones(3, 2))
    scale = RateScaler(4, 2, ratio=4.0).scale
    torch.testing.assert_close(scale[:, 0], torch.tensor([0.125, 0.5, 2.0, 8.0]))
    assert torch.equal(scale[:, 0], scale[:, 1])


def test_gradients_reach_the_two_points_around(scaler: RateScaler) -> None:
    (gradient,) = torch.autograd.grad(scaler(1.25).sum(), scaler.scale)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([0.0, 0.75, 0.25, 0.0]))


@pytest.mark.parametrize(
    "rate_index", [-1, 4, 3.01, -0.5, float("nan"), torch.tensor([0, 4]), torch.tensor([0.0, -0.1])]
)
def test_outside_the_trained_points_is_refused(scaler: RateScaler, rate_index: Rate) -> None:
    with pytest.raises(ValueError, match=r"rate_index must lie in \[0, 3\], got"):
        scaler(rate_index)


def test_num_rates_must_be_at_least_1() -> None:
    assert RateScaler(1, 2)(0).shape == (1, 2, 1, 1)
    with pytest.raises(ValueError, match="at least 1"):
        RateScaler(0, 2)


def test_the_scaler_acts_in_the_middle_of_the_transform() -> None:
    module = RateTransform(6, 8, 4, 2)
    torch.nn.init.normal_(module.scaler.scale)
    x = torch.randn(2, 6, 3, 5)
    out = module(x, torch.tensor([0, 1]))
    assert out.shape == (2, 4, 3, 5)
    for i, scale in enumerate(module.scaler.scale):
        middle = module.head(x[i : i + 1]) * scale.view(1, 8, 1, 1)
        torch.testing.assert_close(out[i : i + 1], module.tail(middle))
