"""An evaluation from images to result files: what is in them, and that nothing else decides it."""

import csv
import errno
import io
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import numpy as np
import pytest
from PIL import Image

from glc.evaluation.codecs.base import ImageCodec, Setting
from glc.evaluation.codecs.still import StillCodec
from glc.evaluation.evaluator import ImageProcessor
from glc.evaluation.report import build_report
from glc.evaluation.results import read_results
from glc.evaluation.summary import SETS
from glc.evaluation.tables import points_table
from glc.evaluation.testsets import ImageSet, ShardSet
from glc.io.names import encode_text
from glc.jobs import worker
from glc.jobs.manifest import JobError
from glc.jobs.storage import LocalStore
from glc.launch import evaluate
from glc.losses.perceptual import LPIPS
from glc.metrics.quality import PSNR, QualityMetrics
from tests.evaluation.stand_ins import SIZES, evaluation, make_jpeg, results, write_images
from tests.jobs.stand_ins import contents, read_tar, write_tar
from tests.losses.test_perceptual import FILES, reference, save_features
from tests.programs import fork_server


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed; tests do not change it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    evaluation(out, images).run()
    return out


class Interrupted(StillCodec):
    """JPEG for a number of files, then an interrupt."""

    def __init__(self, left: int) -> None:
        super().__init__("JPEG", ".jpg", {"optimize": True}, 1, 95, qualities=(10, 50))
        self.left = left

    def encode_at(self, image: Image.Image, quality: float) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().encode_at(image, quality)


class Shrinking(StillCodec):
    """JPEG that loses a column of images of one width, and fails for squares at quality 50."""

    def __init__(self, width: int) -> None:
        super().__init__("JPEG", ".jpg", lowest=1, highest=95, qualities=(10, 50))
        self.width = width

    def decode(self, data: bytes) -> Image.Image:
        image = super().decode(data)
        return image.crop((0, 0, image.width - (image.width == self.width), image.height))

    def encode(self, image: Image.Image, setting: Setting) -> bytes:
        if setting.quality == 50 and image.size == (48, 48):
            raise RuntimeError("no")
        return super().encode(image, setting)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=float)


def test_results_are_those_of_the_files_on_disk(finished: Path, images: Path) -> None:
    summary, rows = results(finished)
    assert [row["image"] + row["label"] for row in rows] == [
        f"p{i}{label}" for i in range(4) for label in ("q10", "q50")
    ]
    for row in rows:
        name, label = row["image"], row["label"]
        original, file = pixels(images / f"{name}.png"), finished / "files" / label / f"{name}.jpg"
        np.testing.assert_array_equal(
            pixels(finished / "reconstructions" / label / f"{name}.png"), pixels(file)
        )
        assert int(row["bytes"]) == file.stat().st_size
        assert float(row["bpp"]) == 8 * file.stat().st_size / (original.shape[0] * original.shape[1])
        psnr = 10 * np.log10(255**2 / np.mean((original - pixels(file)) ** 2))
        assert float(row["psnr"]) == pytest.approx(psnr, abs=1e-3)
    for point in summary["points"]:
        label = point["label"]
        for key in ("psnr", "bpp"):
            mean = np.mean([float(row[key]) for row in rows if row["label"] == label])
            assert point[key] == pytest.approx(mean)
        # Over all values of all images, not a mean of means.
        decoded = finished / "reconstructions" / label
        differences = [
            np.abs(pixels(images / f"p{i}.png") - pixels(decoded / f"p{i}.png")).ravel() for i in range(4)
        ]
        assert point["difference"] == pytest.approx(np.concatenate(differences).mean() / 127.5, rel=1e-4)
    assert summary["points"][0]["setting"] == {"quality": 10}
    assert summary["points"][0]["bpp"] < summary["points"][1]["bpp"]


def test_the_summary_says_over_how_many_images(finished: Path) -> None:
    summary, rows = results(finished)
    assert summary["images"] == 4
    assert summary["failed"] == []
    assert summary["unavailable"] == {"lpips": "no weights here; fix: put them there"}
    # MS-SSIM is defined for one of the four.
    assert [row["ms_ssim"] != "" for row in rows if row["label"] == "q10"] == [min(s) >= 176 for s in SIZES]
    assert summary["measured"]["q10"] == {"bpp": 4, "psnr": 4, "ms_ssim": 1, "difference": 4}
    assert "over 1 of 4 images" in summary["incomplete"]["ms_ssim, q10"]
    assert summary["points"][0]["ms_ssim"] == float(rows[4]["ms_ssim"])


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_run_that_was_killed_resumes_to_the_same_results(
    images: Path, finished: Path, tmp_path: Path, after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluation(tmp_path, images, make_codec=lambda device: Interrupted(after)).run()
    assert not (tmp_path / "summary.json").exists()
    journal = tmp_path / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == after
    with journal.open("a") as file:
        file.write('{"image": "p3", "label": "q10", "byt')  # the line that was being written
    (tmp_path / "files" / "q10").mkdir(parents=True, exist_ok=True)
    (tmp_path / "files" / "q10" / ".glc-0123456789abcdef.part").write_bytes(b"half")
    # It does what is left, and not more.
    evaluation(tmp_path, images, make_codec=lambda device: Interrupted(8 - after)).run()
    assert results(tmp_path) == results(finished)
    assert not list(tmp_path.rglob("*.part"))
    # A third start has nothing to do.
    before = contents(tmp_path)
    evaluation(tmp_path, images, make_codec=lambda device: Interrupted(0)).run()
    assert contents(tmp_path) == before


def test_a_missing_file_is_written_again(images: Path, finished: Path, tmp_path: Path) -> None:
    evaluation(tmp_path, images).run()
    (tmp_path / "reconstructions" / "q50" / "p1.png").unlink()
    (tmp_path / "files" / "q10" / "p2.jpg").write_bytes(b"short")
    evaluation(tmp_path, images, make_codec=lambda device: Interrupted(2)).run()
    assert results(tmp_path) == results(finished)
    assert (tmp_path / "reconstructions" / "q50" / "p1.png").is_file()


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the workers with their imports done; tests/jobs starts new interpreters as commands do."""
    server = fork_server()
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: server)


@pytest.mark.usefixtures("forked")
def test_two_processes_give_the_numbers_of_one(images: Path, finished: Path, tmp_path: Path) -> None:
    evaluation(tmp_path, images, processes=2).run()
    assert results(tmp_path) == results(finished)


def test_a_folder_of_another_evaluation_is_refused(images: Path, finished: Path, tmp_path: Path) -> None:
    evaluation(tmp_path / "out", images).run()
    kept = (tmp_path / "out" / "journal.jsonl").read_bytes()
    changed = write_images(tmp_path / "changed")
    Image.new("RGB", (56, 40)).save(changed / "p0.png")
    for match, values in {
        r"settings was .*q10.* is .*q20": {"make_codec": partial(make_jpeg, (20, 50))},
        r"data\.sha256\.p0 was": {"images": ImageSet(changed)},
        r"seed was 0, is 1": {"seed": 1},
        r"protocol\.threads was 1, is 2": {"threads": 2},
        r"protocol\.measured was": {"metrics": ["psnr", "ms_ssim", "lpips"]},
        r"data\.name was .folder., is .other.": {"images": ImageSet(images, name="other")},
    }.items():
        with pytest.raises(JobError, match=match) as caught:
            evaluation(tmp_path / "out", images, **values).run()
        assert "give another out=, or overwrite=true" in str(caught.value)
        assert (tmp_path / "out" / "journal.jsonl").read_bytes() == kept
    evaluation(tmp_path / "out", images, make_codec=partial(make_jpeg, (20,)), overwrite=True).run()
    assert [point["label"] for point in results(tmp_path / "out")[0]["points"]] == ["q20"]
    assert not (tmp_path / "out" / "files" / "q10").exists()


def test_a_folder_in_use_is_refused(images: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from glc.io.locks import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "journal.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(JobError, match="another evaluation is writing"):
            evaluation(tmp_path, images).run()
        other.communicate(b"\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{"])
def test_a_folder_whose_settings_are_unknown_is_refused(images: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "journal.jsonl").write_text("{}\n")
    if content:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(JobError, match="overwrite=true"):
        evaluation(tmp_path, images).run()


def test_images_that_fail_are_named_and_the_others_measured(tmp_path: Path) -> None:
    images = write_images(tmp_path / "set")
    (images / "broken.png").write_bytes((images / "p2.png").read_bytes()[:9000])
    (images / "text.jpg").write_text("no image")
    summary = evaluation(tmp_path / "out", images, make_codec=lambda device: Shrinking(71)).run()
    failed = {(entry["image"], entry.get("label")): entry["reason"] for entry in summary["failed"]}
    assert failed.keys() == {("broken", None), ("text", None), ("p1", "q50"), ("p3", None)}
    assert "broken.png: corrupt or truncated" in failed["broken", None]
    assert "decoded to 70x33 pixels, the original has 71x33" in failed["p3", None]
    assert failed["p1", "q50"] == "no"
    assert [(point["label"], point["images"]) for point in summary["points"]] == [("q10", 3), ("q50", 2)]
    assert summary["images"] == 2
    assert summary["data"]["count"] == 6
    _, rows = results(tmp_path / "out")
    assert [row["image"] + row["label"] for row in rows] == ["p0q10", "p0q50", "p1q10", "p2q10", "p2q50"]
    # Mended, it is measured when the run is started again with what was there before.
    journal = [json.loads(line) for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()]
    assert not [entry for entry in journal if "failed" in entry]


def make_metrics_with_lpips(weights: Path, omitted: Sequence[str]) -> QualityMetrics:
    return QualityMetrics({"psnr": PSNR(), "lpips": LPIPS("alex", weights)})


def test_image_too_small_for_a_metrics_network_is_measured_by_the_others(tmp_path: Path) -> None:
    save_features(reference("alex"), tmp_path / FILES["alex"])
    images = write_images(tmp_path / "set", [(40, 56), (1, 1), (8, 9)])
    summary = evaluation(
        tmp_path / "out",
        images,
        make_metrics=partial(make_metrics_with_lpips, tmp_path),
        metrics=["psnr", "lpips"],
    ).run()
    assert not summary["failed"]
    assert [point["images"] for point in summary["points"]] == [3, 3]
    assert summary["measured"]["q10"] == {"bpp": 3, "psnr": 3, "lpips": 1}
    assert summary["incomplete"] == {
        f"lpips, {label}": "over 1 of 3 images: not defined for the sizes of the others"
        for label in ("q10", "q50")
    }
    _, rows = results(tmp_path / "out")
    assert [bool(row["lpips"]) for row in rows] == [True, True, False, False, False, False]
    assert all(row["bpp"] and row["psnr"] for row in rows)
    assert summary["codec"]["conversion"] == (
        "8-bit RGB, not padded; YCbCr 4:2:0, BT.601, full range, by its own encoder"
    )
    (note,) = [note for note in points_table([read_results(tmp_path / "out")]).notes if "BT.601" in note]
    assert note == f"jpeg: not resized; {summary['codec']['conversion']}."


def test_missed_target_rates_are_noted(images: Path, tmp_path: Path) -> None:
    def codec(device: str) -> ImageCodec:
        return StillCodec("JPEG", ".jpg", lowest=1, highest=95, target_bpp=(3.0, 100.0, 0.1))

    summary = evaluation(tmp_path, images, make_codec=codec).run()
    rows = {(row["image"], row["label"]): float(row["bpp"]) for row in results(tmp_path)[1]}
    short = {(note["image"], note["label"]) for note in summary["notes"]}
    for key, bpp in rows.items():
        target = float(key[1].removeprefix("bpp"))
        assert bpp <= target
        assert (bpp < 0.97 * target) <= (key in short)
    assert ("p0", "bpp100") in short
    assert {entry["label"] for entry in summary["failed"]} == {"bpp0.1"}
    assert all("the smallest file has" in entry["reason"] for entry in summary["failed"])


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of two images, each with a text."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        members = []
        for i in (2 * shard, 2 * shard + 1):
            members += [(f"p{i}.txt", b"text"), (f"p{i}.png", (images / f"p{i}.png").read_bytes())]
        write_tar(folder / f"val-{shard}.tar", members)
    return folder


@pytest.fixture(scope="module")
def finished_shards(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed; tests do not change it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    evaluation(out, shards).run()
    return out


def test_results_of_shards_equal_those_of_a_folder(
    finished_shards: Path, images: Path, tmp_path: Path
) -> None:
    evaluation(tmp_path / "folder", images).run()
    expected, expected_rows = results(tmp_path / "folder")
    summary, rows = results(finished_shards)
    assert [row["image"] for row in rows] == [f"val-{i // 2}/p{i}" for i in range(4) for _ in range(2)]
    for row, other in zip(rows, expected_rows, strict=True):
        assert row == {key: other[key] for key in row} | {"image": row["image"]}
    for point, other in zip(summary["points"], expected["points"], strict=True):
        difference = other.pop("difference")  # a metric of the complete set
        assert point.pop("difference") == pytest.approx(difference)
        assert point == other
    assert summary["incomplete"] == expected["incomplete"]
    assert summary["measured"] == expected["measured"]
    assert "put them there" in summary["unavailable"]["lpips"]
    assert (summary["images"], summary["data"]["count"], summary["failed"]) == (4, 4, [])
    # What reads results reads these too, and makes a page without images of them.
    assert len(read_results(finished_shards).rows) == 8
    assert f"{summary['points'][0]['psnr']:.2f}" in build_report([read_results(finished_shards)])


def test_each_shard_has_its_row_and_the_totals_add_up(finished_shards: Path) -> None:
    _, rows = results(finished_shards)
    with (finished_shards / "per_shard.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["shard"], line["label"]) for line in lines] == [
        (f"val-{i}.tar", label) for i in range(2) for label in ("q10", "q50")
    ]
    for line in lines:
        name = line["shard"].removesuffix(".tar")
        mine = [row for row in rows if (row["image"][:5], row["label"]) == (name, line["label"])]
        assert int(line["bytes"]) == sum(int(row["bytes"]) for row in mine)
        assert float(line["psnr"]) == pytest.approx(sum(float(row["psnr"]) for row in mine) / 2)
        assert (line["images"], line["failed"]) == ("2", "0")
    totals = json.loads((finished_shards / "manifest.json").read_text())["totals"]
    assert totals["coded_bytes"] == sum(int(row["bytes"]) for row in rows)
    assert (totals["samples"], totals["done"]) == (4, 4)
    assert list(read_tar(finished_shards / "val-0.tar")) == ["p0.json", "p1.json", SETS]


def test_the_named_image_of_each_sample_is_measured(
    images: Path, shards: Path, finished_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "masked"
    for shard in range(2):
        members = []
        for i in (2 * shard, 2 * shard + 1):
            members.append((f"p{i}.mask.png", (images / f"p{3 - i}.png").read_bytes()))
            members.append((f"p{i}.png", (images / f"p{i}.png").read_bytes()))
        write_tar(folder / f"val-{shard}.tar", members)
    run = partial(evaluation, make_codec=partial(make_jpeg, (10, 50)))
    for member in ("png", "mask.png", None):
        run(tmp_path / str(member), folder, images=ShardSet(str(folder), member=member)).run()
        assert caplog.text.count("a sample has 2 images (mask.png, png), and mask.png is used") == (
            not member
        )
    table = "per_image.csv"
    assert (tmp_path / "png" / table).read_bytes() == (finished_shards / table).read_bytes()
    assert (tmp_path / "mask.png" / table).read_bytes() != (finished_shards / table).read_bytes()
    assert (tmp_path / "mask.png" / table).read_bytes() == (tmp_path / "None" / table).read_bytes()
    summary = run(tmp_path / "jpg", folder, images=ShardSet(str(folder), member="jpg")).run()
    reason = "no file jpg, which testset.member names (p0.mask.png, p0.png)"
    assert summary["failed"][0]["reason"] == reason
    # Another member is another evaluation.
    with pytest.raises(JobError, match="member"):
        run(tmp_path / "png", folder, images=ShardSet(str(folder), member="mask.png")).run()


def test_files_are_kept_when_asked_for(shards: Path, finished_shards: Path, tmp_path: Path) -> None:
    evaluation(tmp_path, shards, keep=True).run()
    kept = read_tar(tmp_path / "val-1.tar")
    suffixes = ("json", "q10.jpg", "q10.png", "q50.jpg", "q50.png")
    assert list(kept) == [*(f"p{i}.{suffix}" for i in (2, 3) for suffix in suffixes), SETS]
    assert len(kept["p2.q10.jpg"]) == json.loads(kept["p2.json"])["q10"]["bytes"]
    table = "per_image.csv"
    assert (tmp_path / table).read_bytes() == (finished_shards / table).read_bytes()


@pytest.mark.parametrize("remote", [False, True])
def test_shards_killed_anywhere_resume_and_measure_each_image_once(
    shards: Path, finished_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    measured, left = 0, 0
    before = contents(shards)
    path: Path | str = shards
    if remote:
        path = "memory://killed/val-{0..1}.tar"
        for shard in shards.iterdir():
            fsspec.filesystem("memory").pipe_file(f"/killed/{shard.name}", shard.read_bytes())

    def interrupting(function: Callable[..., Any], after: bool) -> Callable[..., Any]:
        """Interrupt before or after a call, once the count of calls has run out."""

        def call(*args: Any, **options: Any) -> Any:
            nonlocal measured, left
            measured += after
            left -= 1
            found = function(*args, **options) if after or left >= 0 else None
            if left < 0:
                raise KeyboardInterrupt
            return found

        return call

    monkeypatch.setattr(ImageProcessor, "process_file", interrupting(ImageProcessor.process_file, after=True))
    monkeypatch.setattr(LocalStore, "move", interrupting(LocalStore.move, after=False))
    for survived in range(30):
        left = 1 + survived % 3
        try:
            evaluation(tmp_path, path).run()
            break
        except KeyboardInterrupt:
            pass
    monkeypatch.undo()
    evaluation(tmp_path, path).run()
    assert survived > 4
    if remote:
        (summary, rows), (expected, expected_rows) = results(tmp_path), results(finished_shards)
        assert (rows, summary["points"]) == (expected_rows, expected["points"])
        fsspec.filesystem("memory").rm("/killed", recursive=True)
    else:
        assert contents(tmp_path) == contents(finished_shards)
    assert contents(shards) == before  # the set may be read-only
    # Of a shard that was cut off all is measured again, of others nothing.
    assert measured <= 4 + 2 * survived


def test_finished_shards_are_kept_and_missing_ones_written_again(
    shards: Path, finished_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation(tmp_path, shards).run()
    monkeypatch.setattr(ImageProcessor, "process_file", lambda *_: pytest.fail("measured again"))
    before = (tmp_path / "per_image.csv").stat().st_mtime_ns
    assert evaluation(tmp_path, shards).run() == results(finished_shards)[0]
    assert (tmp_path / "per_image.csv").stat().st_mtime_ns == before
    (tmp_path / "per_shard.csv").unlink()
    evaluation(tmp_path, shards).run()
    assert contents(tmp_path) == contents(finished_shards)
    monkeypatch.undo()
    (tmp_path / "val-0.tar").unlink()
    evaluation(tmp_path, shards).run()
    assert contents(tmp_path) == contents(finished_shards)


@pytest.mark.usefixtures("forked")
def test_two_processes_measure_shards_like_one(shards: Path, finished_shards: Path, tmp_path: Path) -> None:
    evaluation(tmp_path, shards, processes=2).run()
    assert contents(tmp_path) == contents(finished_shards)


def test_failures_are_reported_and_means_are_over_the_same_images(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_tar(folder / "val-0.tar", read_tar(shards / "val-0.tar").items())
    (folder / "val-1.tar").write_bytes((shards / "val-1.tar").read_bytes().rstrip(b"\0")[:-100])
    write_tar(folder / "val-2.tar", [("bad.png", b"no image"), ("none.txt", b"")])
    given = ShardSet(str(folder / "val-{0..3}.tar"), count=9)
    summary = evaluation(
        tmp_path / "out", shards, images=given, make_codec=lambda device: Shrinking(56)
    ).run()
    reasons = {failure["image"]: failure["reason"] for failure in summary["failed"]}
    for image, reason in {
        "val-0/p0": "q10: p0.png: decoded to 55x40 pixels, the original has 56x40",
        "val-0/p1": "q50: no",
        "val-1.tar": "val-1.tar",  # cut short
        "val-2/bad": "not an image",
        "val-2/none": "no file to process",
        "val-3.tar": "no such file",
        "number": "have 5 images, the set has 9",
    }.items():
        assert reason in reasons[image]
    assert [point["images"] for point in summary["points"]] == [1, 1]  # p2
    assert summary["data"]["count"] == 5


def test_shards_that_cannot_be_evaluated_are_refused(
    shards: Path, finished_shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=r"settings was .*give another out=, or overwrite=true"):
        evaluation(finished_shards, shards, make_codec=partial(make_jpeg, (10,))).run()
    with pytest.raises(ValueError, match="overwritten"):
        evaluation(shards, shards).run()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").touch()
    with pytest.raises(JobError, match="evaluation of a folder"):
        evaluation(tmp_path / "out", shards).run()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        evaluation(tmp_path / "file", shards).run()


def test_from_the_configuration(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fixed = ("codec=jpeg", "qualities=[10,50]", "metrics=none", "testset=shards", f"out={tmp_path / 'out'}")

    def run(*more: str) -> None:
        evaluate.main([*fixed, *more])

    def exit_code(*more: str) -> Any:
        caplog.clear()
        with pytest.raises(SystemExit) as caught:
            run(*more)
        return caught.value.code

    run(f"testset.path='{shards}/val-{{0..1}}.tar'", "testset.center_crop=32")
    summary, _ = results(tmp_path / "out")
    assert (summary["images"], summary["data"]["name"]) == (4, "shards")
    assert summary["data"]["preparation"]["center_crop"] == 32
    figures = json.loads(read_tar(tmp_path / "out" / "val-0.tar")["p0.json"])
    assert (figures["q10"]["width"], figures["q10"]["height"]) == (32, 32)
    assert exit_code(f"testset.path='{shards}/val-{{0..2}}.tar'", "testset.center_crop=32") == 1
    assert exit_code(f"testset.path={shards}") == 2
    assert "center_crop was 32, is null" in caplog.text
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(worker, "member_bytes", Mock(side_effect=full))
    assert exit_code(f"testset.path={shards}", "overwrite=true") == 3
    assert "run the same command again" in caplog.text


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """They are measured, read again and reported; the run is complete when it is started again."""
    images = write_images(tmp_path / "set", SIZES[:1])
    good, bad = (os.fsdecode(name) for name in (b"caf\xe9", b"bad\xff"))
    (images / "p0.png").rename(images / f"{good}.png")
    (images / f"{bad}.png").write_bytes(b"nothing")
    for _ in range(2):
        evaluation(tmp_path / "run", images).run()
    found = read_results(tmp_path / "run")
    assert {row.image for row in found.rows} == {good}
    summary, _ = results(tmp_path / "run")
    assert [failure["image"] for failure in summary["failed"]] == [bad]
    (tmp_path / "run" / "per_image.csv").read_bytes().decode("utf-8")
    assert "caf\\udce9" in encode_text(build_report([found], images)).decode()


def test_treatments_and_background(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(tmp_path / "set" / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "set" / "b.png")
    for colour, levels in (("white", 255), ("black", 0)):
        images = ImageSet(tmp_path / "set", background=colour)
        evaluation(tmp_path / colour, tmp_path / "set", images=images).run()
        summary, _ = results(tmp_path / colour)
        said = {"image": "a", "treatment": [f"transparent, composited on {colour}"]}
        assert summary["treatments"] == [said]
        assert pixels(tmp_path / colour / "reconstructions" / "q50" / "a.png")[0, 0].tolist() == [levels] * 3
        assert summary["data"]["preparation"].get("background", "white") == colour
    with pytest.raises(ValueError, match=r"testset\.background: not a colour: blak"):
        ImageSet(tmp_path / "set", background="blak")


def test_treatments_of_shards(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(stream, "PNG")
    write_tar(tmp_path / "a.tar", [("k.png", stream.getvalue())])
    evaluation(tmp_path / "run", tmp_path / "a.tar").run()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["treatments"] == [{"image": "a/k", "treatment": ["transparent, composited on white"]}]
