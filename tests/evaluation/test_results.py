"""Reading result files: values are taken over, invalid ones are refused with file and key."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from glc.evaluation.results import Results, ResultsError, all_metrics, metric, read_results, read_runs
from tests.evaluation.fake_run import CURVE, IMAGES, write_run


def change(folder: Path, edit: Any) -> None:
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    edit(summary)
    path.write_text(json.dumps(summary))


def test_points_and_rows(tmp_path: Path) -> None:
    run = read_results(write_run(tmp_path / "a", curve=CURVE[::-1]))
    assert [point.bpp for point in run.points] == [0.02, 0.03, 0.05, 0.08]
    assert run.points[0].label == "q3"
    assert run.points[0].values["lpips"] == 0.30
    assert len(run.rows) == len(CURVE) * len(IMAGES)
    row = run.rows[0]
    assert (row.image, row.label, row.width, row.height, row.bytes) == ("harbour", "q0", 48, 32, 100)
    assert row.values["psnr"] == 25.0
    assert run.reconstruction(row).is_file()
    assert run.metrics() == ["psnr", "ms_ssim", "lpips"]


def test_a_metric_without_a_value_is_omitted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    change(folder, lambda summary: summary["points"][0].update(dists=None, fid=math.nan))
    run = read_results(folder)
    assert "dists" not in run.points[0].values
    assert run.metrics() == ["psnr", "ms_ssim", "lpips"]
    # Not defined for an image of its size: an empty cell.
    path = folder / "per_image.csv"
    path.write_text(path.read_text().replace(",0.7,", ",,"))
    assert "ms_ssim" not in next(row for row in read_results(folder).rows if row.label == "q0").values


def test_results_of_version_0_1_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", failed=[{"image": "quay", "reason": "corrupt"}])
    expected = read_results(folder)
    summary, table = folder / "summary.json", folder / "per_image.csv"
    header, _, rows = table.read_text().partition("\n")
    table.write_text(header.replace("image", "picture") + "\n" + rows)
    text = summary.read_text().replace('"images":', '"pictures":').replace('"image":', '"picture":')
    assert '"picture"' in text
    summary.write_text(text)
    assert read_results(folder) == expected
    assert [failure["image"] for failure in expected.failed] == ["quay"]


def missing(*keys: Any) -> Any:
    def edit(summary: Any) -> None:
        for key in keys[:-1]:
            summary = summary[key]
        del summary[keys[-1]]

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.update(format=2), "format is 2"),
        (missing("codec", "name"), "codec.name is missing"),
        (missing("data"), "key data is missing"),
        (missing("failed"), "key failed is missing"),
        (missing("points", 1, "bpp"), "points[1].bpp is missing"),
        (lambda s: s["points"][2].update(psnr="good"), "points[2].psnr must be a number"),
        (lambda s: s["points"][2].update(bpp=0), "points[2].bpp must be positive"),
        (lambda s: s["points"][2].update(label="../q"), "not a valid folder name"),
        (lambda s: s["points"][2].update(label="q0"), "two points have the label 'q0'"),
        (lambda s: s["points"].clear(), "points is empty"),
        (lambda s: s["failed"].append({"image": "x"}), "failed[0] must have"),
        (lambda s: s["points"].pop(), "no point of summary.json has the label 'q3'"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path: Path, edit: Any, words: str) -> None:
    folder = write_run(tmp_path / "a")
    change(folder, edit)
    with pytest.raises(ResultsError) as caught:
        read_results(folder)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("harbour,48", "/etc/x,48", "line 2: '/etc/x' is not a valid"),
        ("harbour,48", "a/../../x,48", "is not a valid image name"),
        ("harbour,48,32,q0,100", "harbour,48,32,q0,many", "line 2: bytes is not a number: 'many'"),
        ("label", "setting", "column label is missing"),
    ],
)
def test_errors_name_the_line_of_the_table(tmp_path: Path, old: str, new: str, words: str) -> None:
    folder = write_run(tmp_path / "a")
    path = folder / "per_image.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ResultsError, match=r"per_image\.csv") as caught:
        read_results(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[]", "\udc00"])
def test_a_missing_or_invalid_summary_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = write_run(tmp_path / "a")
    path = folder / "summary.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ResultsError, match=r"summary\.json"):
        read_results(folder)


def test_equal_names_of_runs_are_made_unique(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "slow"), write_run(tmp_path / "fast"), write_run(tmp_path / "x", "jpeg")]
    assert [run.name for run in read_runs(folders)] == ["glc (slow)", "glc (fast)", "jpeg"]
    same = read_runs([folders[0], folders[0]])
    assert len({run.name for run in same}) == 2


def test_metrics_are_in_the_usual_order(tmp_path: Path) -> None:
    def run(**values: float) -> Results:
        folder = tmp_path / "-".join(values)
        return read_results(write_run(folder, curve=[{"bpp": 0.1, **values}]))

    runs = [run(zeal=1, kid_64=1, lpips=1), run(fid_256=1, fid_64=1, psnr=1)]
    assert all_metrics(runs) == ["psnr", "lpips", "fid_256", "fid_64", "kid_64", "zeal"]


def test_direction_of_metrics() -> None:
    better = {name: metric(name).higher_is_better for name in ("psnr", "ms_ssim", "fid_64", "cmmd", "zeal")}
    assert better == {"psnr": True, "ms_ssim": True, "fid_64": False, "cmmd": False, "zeal": None}
    assert metric("fid_64").heading == "FID, 64 ↓"
    assert metric("psnr").heading == "PSNR (dB) ↑"
