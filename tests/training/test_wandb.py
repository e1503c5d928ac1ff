"""W&B content of a sweep, as documented in docs/wandb.md, read back from offline runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glc.training.callbacks.codebook import histogram
from glc.training.loggers import rate_points
from tests.short_runs import figures, run, settings, write_images
from tests.wandb_file import OfflineRun, read_finished_run

LAMBDAS = {"0.5": [0.5] * 4, "[1,2,3,4]": [1, 2, 3, 4]}
HISTOGRAMS = "glc.training.callbacks.codebook.CodebookHistograms"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A sweep over lambda, with the folders of `python -m glc.launch.train -m`."""
    base = tmp_path_factory.mktemp("wandb")
    images = write_images(base / "images")
    found = []
    for i, lmbda in enumerate(LAMBDAS):
        changes = {
            "stage.lmbda": lmbda,
            "dir": str(base / "runs" / "sweep" / "transform" / f"stage.lmbda-{i}"),
            "data.val_crop": 192,
            "init_from": "none",
            "logger": "default",
            "metrics": "default",
            # `++` also replaces an existing entry.
            "++callbacks.histograms._target_": HISTOGRAMS,
        }
        found.append(run({**settings(images, base / "runs", "sweep", "transform", steps=2), **changes}))
    return found


@pytest.fixture(scope="module")
def runs(folders: list[Path]) -> list[OfflineRun]:
    return [read_finished_run(file_of(folder)) for folder in folders]


def file_of(folder: Path) -> Path:
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return file


def table_of(folder: Path, entry: Any) -> list[dict[str, Any]]:
    content = json.loads((file_of(folder).parent / "files" / entry["path"]).read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_sweep_runs_share_project_group_and_tags(runs: list[OfflineRun]) -> None:
    assert {(run.project, run.group, run.job_type) for run in runs} == {("glc", "sweep", "transform")}
    assert {tuple(run.tags) for run in runs} == {("transform", "tiny")}
    assert [run.name for run in runs] == [f"sweep/transform/stage.lmbda-{i}" for i in range(2)]
    assert runs[0].identity != runs[1].identity
    # The table is sorted and coloured by lambda.
    assert [run.config["stage"]["lmbda"] for run in runs] == [0.5, [1, 2, 3, 4]]


def test_summary_has_mean_over_rate_points_and_best_loss(runs: list[OfflineRun]) -> None:
    for found in runs:
        for name in ("bpp", "psnr", "ms_ssim"):
            points = [found.summary[f"val/{name}/{k}"] for k in range(4)]
            assert found.summary[f"val/{name}"] == pytest.approx(sum(points) / 4)
        losses = [row["val/loss"] for row in found.history if "val/loss" in row]
        assert found.summary["val/loss"] == {"min": min(losses), "last": losses[-1]}
        speeds = [row["train/images_per_second"] for row in found.history if "train/images_per_second" in row]
        assert found.summary["train/images_per_second"]["mean"] == pytest.approx(sum(speeds) / len(speeds))


def test_table_has_one_row_per_rate_point(folders: list[Path], runs: list[OfflineRun]) -> None:
    for folder, found, lambdas in zip(folders, runs, LAMBDAS.values(), strict=True):
        rows = table_of(folder, found.summary["rd/points"])
        assert [row["rate_point"] for row in rows] == [0, 1, 2, 3]
        assert [row["lambda"] for row in rows] == lambdas
        for k, row in enumerate(rows):
            for name in ("bpp", "psnr", "ms_ssim", "loss"):
                assert row[name] == pytest.approx(found.summary[f"val/{name}/{k}"])


def test_curves_use_the_table_columns(folders: list[Path], runs: list[OfflineRun]) -> None:
    charts = runs[0].config["_wandb"]
    for name in ("psnr", "ms_ssim"):
        chart = charts["visualize"][f"rd/curve_{name}"]["panel_config"]
        assert (chart["fieldSettings"]["x"], chart["fieldSettings"]["y"]) == ("bpp", name)
        rows = table_of(folders[0], runs[0].summary[f"rd/curve_{name}_table"])
        assert len({row["bpp"] for row in rows}) == 4


def test_histograms_and_panels_are_logged(folders: list[Path], runs: list[OfflineRun]) -> None:
    for folder, found in zip(folders, runs, strict=True):
        chart = found.summary["val/hyper_codebook_histogram"]
        # z of 3 x 3 for two images of 192 pixels, at four rate points.
        assert sum(chart["values"]) == 9 * 2 * 4
        assert chart["values"] == sorted(chart["values"], reverse=True)
        used = sum(value > 0 for value in chart["values"])
        assert used == found.summary["val/hyper_codebook_count"]
        panel = found.summary["val/panel"]
        assert panel["count"] == 2
        for name in panel["filenames"]:
            assert (file_of(folder).parent / "files" / name).is_file()


def test_all_metrics_use_the_global_step(runs: list[OfflineRun]) -> None:
    for found in runs:
        assert found.definitions["*"]["step"] == "trainer/global_step"
        assert all("trainer/global_step" in row for row in found.history)


def test_csv_and_wandb_have_the_same_values(folders: list[Path], runs: list[OfflineRun]) -> None:
    row = [row for row in figures(folders[0]) if "val/psnr/0" in row][-1]
    assert row["val/psnr/0"] == pytest.approx(runs[0].summary["val/psnr/0"])


def test_rate_points_are_sorted_and_keep_common_metrics_only() -> None:
    metrics = {"val/bpp/1": 2.0, "val/bpp/0": 1.0, "val/psnr/0": 3.0, "val/psnr": 9.0, "train/bpp/0": 7.0}
    assert rate_points(metrics) == {0: {"bpp": 1.0}, 1: {"bpp": 2.0}}
    assert rate_points(metrics, [5, 6]) == {0: {"lambda": 5, "bpp": 1.0}, 1: {"lambda": 6, "bpp": 2.0}}
    assert rate_points(metrics, 4)[1]["lambda"] == 4
    assert rate_points({"val/loss": 1.0}, 4) == {}


@pytest.mark.parametrize("size", [3, 256, 300, 16384])
def test_histogram_keeps_sum_and_order(size: int) -> None:
    counts = np.random.default_rng(0).integers(0, 50, size)
    values, edges = histogram(counts)
    assert len(edges) == len(values) + 1 <= 257
    assert values.sum() == counts.sum()
    assert (edges[0], edges[-1]) == (0, size)
    # Bins of unlike width hold unlike numbers of codes; their means fall.
    means = values / np.diff(edges)
    assert (np.diff(means) <= 0).all()
    assert means[0] == np.sort(counts)[::-1][: edges[1]].mean()
