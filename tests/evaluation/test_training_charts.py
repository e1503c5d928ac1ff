"""Charts of training runs: bounded in size, true to the extremes, and the values computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from glc.evaluation.training_charts import Thinned, curve_charts, histogram_charts, rate_charts, thin, title
from glc.evaluation.training_runs import Series, TrainingRun, read_training_run
from tests.evaluation.fake_training import config, rows_of, write_histogram, write_version


def run_of(folder: Path, **changes: object) -> TrainingRun:
    write_version(folder, rows_of(), config(folder, **changes))
    write_histogram(folder)
    return read_training_run(folder, folder.name)


def test_thinned_curves_keep_extremes_gaps_and_ends() -> None:
    random = np.random.default_rng(0)
    values = np.exp(-np.arange(100_000) / 2e4) + 0.01 * random.standard_normal(100_000)
    values[51_234], values[70_001], values[12_345] = 9.0, -9.0, math.nan
    kept = thin(values, 400)
    assert len(kept) <= 400 + 3
    assert {0, 99_999, 51_234, 70_001, 12_345} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    # Every part is represented, so that the curve keeps its shape.
    assert np.diff(kept).max() < 2 * 100_000 / 200


def test_short_curves_are_kept_and_only_gaps_give_one_value_each() -> None:
    assert thin(np.arange(10.0), 10).tolist() == list(range(10))
    nothing = thin(np.full(1000, math.nan), 10)
    assert nothing.tolist() == [0, 200, 400, 600, 800, 999]


def test_curves_of_equal_steps_share_them_and_gaps_are_null() -> None:
    steps = np.array([0, 10, 20])
    series = {
        "a": Series(steps, np.array([1.0, math.nan, 1 / 3])),
        "b": Series(steps, np.array([1.0, 2, math.inf])),
    }
    thinned = Thinned([TrainingRun(Path("x"), "x", {}, series)])
    assert thinned.series("a") == {"0": [0, [1.0, None, 0.33333]]}
    assert thinned.series("b") == {"0": [0, [1.0, 2.0, None]]}
    assert thinned.steps == [[0, 10, 20]]
    assert thinned.series("c") == {}


def test_the_number_of_values_is_bounded() -> None:
    long = Series(np.arange(20_000), np.random.default_rng(0).random(20_000))
    runs = [TrainingRun(Path("x"), "x", {}, {f"train/{k}": long for k in range(50)}) for _ in range(60)]
    thinned = Thinned(runs)
    assert thinned.limit == 80
    assert sum(len(y) for _, y in thinned.series("train/0").values()) <= 60 * (80 + 2)


def test_a_metric_is_one_chart_of_its_rate_points(tmp_path: Path) -> None:
    charts = {chart["key"]: chart for chart in curve_charts([run_of(tmp_path / "a")])}
    assert charts["val/psnr"]["variants"] == {"mean": "val/psnr", "0": "val/psnr/0", "1": "val/psnr/1"}
    assert charts["val/psnr"]["title"] == "PSNR (dB) ↑"
    assert charts["train/loss"]["variants"] == {"mean": "train/loss"}
    assert {key: chart["group"] for key, chart in charts.items()} == {
        "val/loss": "validation",
        "val/bpp": "validation",
        "val/psnr": "validation",
        "val/ms_ssim": "validation",
        "val/lpips_alex": "validation",
        "train/loss": "losses",
        "val/hyper_codebook_usage": "codebooks",
        "lr-AdamW": "optimisation",
        "train/grad_norm/decoder": "optimisation",
    }
    assert list(charts)[:3] == ["val/loss", "train/loss", "val/bpp"]
    assert title("train/psnr") == "train/psnr"


@pytest.mark.parametrize(
    ("lmbda", "expected"), [(3, [3.0, 3.0]), ([1.0, 2.0], [1.0, 2.0]), (None, [None, None])]
)
def test_rate_points_are_those_of_the_last_validation(
    tmp_path: Path, lmbda: object, expected: list[float]
) -> None:
    run = run_of(tmp_path / "a", stage__lmbda=lmbda)
    charts = rate_charts([TrainingRun(Path("b"), "b", {}), run])
    assert [chart["title"] for chart in charts] == ["PSNR (dB) ↑", "MS-SSIM ↑", "LPIPS, alex ↓"]
    points = charts[0]["points"]
    assert [(p["run"], p["point"], p["bpp"], p["value"], p["step"]) for p in points] == [
        (1, 0, 0.01, 22.0, 99),
        (1, 1, 0.02, 23.0, 99),
    ]
    assert [p["lambda"] for p in points] == expected


def test_points_that_are_not_finite_are_not_plotted(tmp_path: Path) -> None:
    row = {"step": 5, "val/bpp/0": math.nan, "val/psnr/0": 20.0, "val/bpp/1": 0.1, "val/psnr/1": math.inf}
    write_version(tmp_path, [row], None)
    assert rate_charts([read_training_run(tmp_path, "a")]) == []


def test_codebook_usage_is_a_share_per_codeword(tmp_path: Path) -> None:
    (chart,) = histogram_charts([run_of(tmp_path / "a")])
    assert chart["title"] == "hyper codebook"
    x, y, step = chart["runs"]["0"]
    assert (x, step) == ([0.0, 1, 2, 3, 4, 5, 6, 7], 100)
    assert y == [0.5, 0.25, 0.125, 0.125, 0.0, 0.0, 0.0, 0.0]
