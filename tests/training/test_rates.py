import pytest
import torch

from glc.training.rates import draw_rates, lambdas

CPU = torch.device("cpu")


def test_one_lambda_or_one_per_point() -> None:
    assert lambdas(2, 3).tolist() == [2.0, 2.0, 2.0]
    assert lambdas([0.5, 1, 4], 3).tolist() == [0.5, 1.0, 4.0]
    assert lambdas(2, 3).dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], r"stage\.lmbda has 2 values for the model's 3 rate points"),
        ([], r"stage\.lmbda has 0 values"),
        ([1.0, 0.0, 2.0], r"stage\.lmbda must be positive"),
        (-1.0, r"stage\.lmbda must be positive"),
        (float("nan"), r"stage\.lmbda must be positive"),
        (float("inf"), r"stage\.lmbda must be positive"),
    ],
)
def test_lambdas_that_make_no_sense_are_refused(values: float | list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lambdas(values, 3)


@pytest.mark.parametrize(("batch", "points"), [(8, 4), (9, 4), (4, 4), (3, 4), (1, 4), (5, 1)])
def test_points_are_as_equally_frequent_as_a_batch_allows(batch: int, points: int) -> None:
    for _ in range(20):
        counts = torch.bincount(draw_rates(batch, points, CPU), minlength=points)
        assert counts.sum() == batch
        assert counts.max() - counts.min() <= 1
        assert len(counts) == points


def test_small_batches_see_every_point_in_time_and_in_any_order() -> None:
    drawn = torch.stack([draw_rates(2, 4, CPU) for _ in range(400)])
    shares = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    assert (shares - 0.25).abs().max() < 0.06
    assert len({tuple(pair) for pair in drawn.tolist()}) == 12  # all ordered pairs of different points
