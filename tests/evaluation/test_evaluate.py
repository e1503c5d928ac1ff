"""An evaluation from images to result files: what is in them, and that nothing else decides it."""

import csv
import errno
import json
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from glc.evaluation.codecs.base import ImageCodec, Setting
from glc.evaluation.codecs.still import StillCodec
from glc.evaluation.evaluator import ImageProcessor
from glc.evaluation.report import build_report
from glc.evaluation.results import read_results
from glc.evaluation.testsets import ImageSet, ShardSet
from glc.io import atomic
from glc.jobs.manifest import JobError
from glc.jobs.tar_shards import Journal
from glc.launch import evaluate
from tests.evaluation.stand_ins import SIZES, evaluation, make_jpeg, results, write_images
from tests.jobs.stand_ins import contents, read_tar, write_tar


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed; tests do not change it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    evaluation(out, images).run()
    return out


class Interrupted(ImageCodec):
    """JPEG, until it is stopped."""

    def __init__(self, after: int) -> None:
        self.inner = make_jpeg((10, 50), "cpu")
        self.name, self.kind, self.suffix = self.inner.name, self.inner.kind, self.inner.suffix
        self.ladder, self.settings, self.left = self.inner.ladder, self.inner.settings, after

    def encode_at(self, image: Image.Image, quality: float) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.inner.encode_at(image, quality)

    def decode(self, data: bytes) -> Image.Image:
        return self.inner.decode(data)

    def versions(self) -> Mapping[str, str]:
        return self.inner.versions()

    def options(self) -> Mapping[str, Any]:
        return self.inner.options()


def interrupted(after: int, device: str) -> ImageCodec:
    return Interrupted(after)


def test_results_are_those_of_the_files_on_disk(finished: Path, images: Path) -> None:
    summary, rows = results(finished)
    assert [row["image"] + row["label"] for row in rows] == [
        f"p{i}{label}" for i in range(4) for label in ("q10", "q50")
    ]
    for row in rows:
        original = np.asarray(Image.open(images / f"{row['image']}.png"), dtype=float)
        data = (finished / "files" / row["label"] / f"{row['image']}.jpg").read_bytes()
        decoded = np.asarray(Image.open(finished / "files" / row["label"] / f"{row['image']}.jpg"))
        saved = np.asarray(Image.open(finished / "reconstructions" / row["label"] / f"{row['image']}.png"))
        np.testing.assert_array_equal(saved, decoded)
        assert int(row["bytes"]) == len(data)
        assert float(row["bpp"]) == 8 * len(data) / (original.shape[0] * original.shape[1])
        psnr = 10 * np.log10(255**2 / np.mean((original - decoded) ** 2))
        assert float(row["psnr"]) == pytest.approx(psnr, abs=1e-3)
    for point in summary["points"]:
        mine = [row for row in rows if row["label"] == point["label"]]
        assert point["psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in mine]))
        assert point["bpp"] == pytest.approx(np.mean([float(row["bpp"]) for row in mine]))
        # Over all values of all images, not a mean of means.
        differences = [
            np.abs(
                np.asarray(Image.open(images / f"p{i}.png"), dtype=float)
                - np.asarray(Image.open(finished / "reconstructions" / point["label"] / f"p{i}.png"))
            ).ravel()
            for i in range(4)
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
        evaluation(tmp_path, images, make_codec=partial(interrupted, after)).run()
    assert not (tmp_path / "summary.json").exists()
    journal = tmp_path / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == after
    with journal.open("a") as file:
        file.write('{"image": "p3", "label": "q10", "byt')  # the line that was being written
    (tmp_path / "files" / "q10").mkdir(parents=True, exist_ok=True)
    (tmp_path / "files" / "q10" / ".glc-0123456789abcdef.part").write_bytes(b"half")
    # It does what is left, and not more.
    evaluation(tmp_path, images, make_codec=partial(interrupted, 8 - after)).run()
    assert results(tmp_path) == results(finished)
    assert not list(tmp_path.rglob("*.part"))
    # A third start has nothing to do.
    before = (tmp_path / "summary.json").read_bytes(), (tmp_path / "per_image.csv").read_bytes()
    evaluation(tmp_path, images, make_codec=partial(interrupted, 0)).run()
    assert ((tmp_path / "summary.json").read_bytes(), (tmp_path / "per_image.csv").read_bytes()) == before


def test_a_missing_file_is_written_again(images: Path, finished: Path, tmp_path: Path) -> None:
    evaluation(tmp_path, images).run()
    (tmp_path / "reconstructions" / "q50" / "p1.png").unlink()
    (tmp_path / "files" / "q10" / "p2.jpg").write_bytes(b"short")
    evaluation(tmp_path, images, make_codec=partial(interrupted, 2)).run()
    assert results(tmp_path) == results(finished)
    assert (tmp_path / "reconstructions" / "q50" / "p1.png").is_file()


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


class Shrinking(StillCodec):
    """Loses a column of wide images, and cannot do one image at its best quality."""

    def decode(self, data: bytes) -> Image.Image:
        image = super().decode(data)
        return image.crop((0, 0, image.width - (image.width == 71), image.height))

    def encode(self, image: Image.Image, setting: Setting) -> bytes:
        if setting.quality == 50 and image.size == (48, 48):
            raise RuntimeError("no")
        return super().encode(image, setting)


def shrinking(device: str) -> ImageCodec:
    return Shrinking("JPEG", ".jpg", lowest=1, highest=95, qualities=(10, 50))


def test_images_that_fail_are_named_and_the_others_measured(tmp_path: Path) -> None:
    images = write_images(tmp_path / "set")
    whole = (images / "p2.png").read_bytes()
    (images / "broken.png").write_bytes(whole[: len(whole) // 2])
    (images / "text.jpg").write_text("no image")
    summary = evaluation(tmp_path / "out", images, make_codec=shrinking).run()
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
        assert point == {key: other[key] for key in point}
        assert set(other) - set(point) == {"difference"}
    assert summary["incomplete"] == expected["incomplete"]
    assert "all images in one place" in summary["unavailable"]["difference"]
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
    assert list(read_tar(finished_shards / "val-0.tar")) == ["p0.json", "p1.json"]


def test_files_are_kept_when_asked_for(shards: Path, finished_shards: Path, tmp_path: Path) -> None:
    evaluation(tmp_path / "out", shards, keep=True).run()
    kept = read_tar(tmp_path / "out" / "val-1.tar")
    assert list(kept) == [
        f"p{i}.{suffix}" for i in (2, 3) for suffix in ("json", "q10.jpg", "q10.png", "q50.jpg", "q50.png")
    ]
    assert len(kept["p2.q10.jpg"]) == json.loads(kept["p2.json"])["q10"]["bytes"]
    assert (tmp_path / "out" / "per_image.csv").read_bytes() == (
        finished_shards / "per_image.csv"
    ).read_bytes()


def test_shards_killed_anywhere_resume_and_measure_each_image_once(
    shards: Path, finished_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, publish = ImageProcessor.process_file, atomic.publish
    counter = {"measured": 0, "left": 0}

    def step() -> None:
        counter["left"] -= 1
        if counter["left"] < 0:
            raise KeyboardInterrupt

    def measured(self: ImageProcessor, data: bytes, name: str) -> Any:
        counter["measured"] += 1
        made = process(self, data, name)
        step()
        return made

    def published(*args: Any, **options: Any) -> None:
        step()  # before a file of results takes its place
        publish(*args, **options)

    monkeypatch.setattr(ImageProcessor, "process_file", measured)
    monkeypatch.setattr(atomic, "publish", published)
    for survived in range(30):
        counter["left"] = 1 + survived % 3
        try:
            evaluation(tmp_path / "out", shards).run()
            break
        except KeyboardInterrupt:
            pass
    monkeypatch.undo()
    evaluation(tmp_path / "out", shards).run()
    assert survived > 4
    assert contents(tmp_path / "out") == contents(finished_shards)
    # What was measured and not yet noted is measured again, no more.
    assert counter["measured"] <= 4 + survived


def test_finished_shards_are_kept_and_missing_ones_written_again(
    shards: Path, finished_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation(tmp_path / "out", shards).run()
    monkeypatch.setattr(ImageProcessor, "process_file", lambda *_: pytest.fail("measured again"))
    before = (tmp_path / "out" / "per_image.csv").stat().st_mtime_ns
    assert evaluation(tmp_path / "out", shards).run() == results(finished_shards)[0]
    assert (tmp_path / "out" / "per_image.csv").stat().st_mtime_ns == before
    (tmp_path / "out" / "per_shard.csv").unlink()
    evaluation(tmp_path / "out", shards).run()
    assert contents(tmp_path / "out") == contents(finished_shards)
    monkeypatch.undo()
    (tmp_path / "out" / "val-0.tar").unlink()
    evaluation(tmp_path / "out", shards).run()
    assert contents(tmp_path / "out") == contents(finished_shards)


def test_two_processes_measure_shards_like_one(shards: Path, finished_shards: Path, tmp_path: Path) -> None:
    evaluation(tmp_path / "out", shards, processes=2).run()
    assert contents(tmp_path / "out") == contents(finished_shards)


class Halved(ImageCodec):
    """Loses images of 48 rows, and makes others smaller at quality 50."""

    def __init__(self) -> None:
        self.inner = make_jpeg((10, 50), "cpu")
        self.name, self.kind, self.suffix, self.ladder = "halved", "jpeg", ".jpg", self.inner.ladder
        self.settings = self.inner.settings

    def encode_at(self, image: Any, quality: float) -> bytes:
        if image.height == 48:
            raise KeyError("lost")
        return self.inner.encode_at(
            image.reduce(2) if quality == 50 and image.height < 70 else image, quality
        )

    def decode(self, data: bytes) -> Any:
        return self.inner.decode(data)

    def versions(self) -> dict[str, str]:
        return {}


def test_failures_are_reported_and_means_are_over_the_same_images(
    shards: Path, images: Path, tmp_path: Path
) -> None:
    whole = (shards / "val-1.tar").read_bytes()
    write_tar(tmp_path / "in" / "val-0.tar", read_tar(shards / "val-0.tar").items())
    (tmp_path / "in" / "val-1.tar").write_bytes(whole.rstrip(b"\0")[:-100])
    write_tar(tmp_path / "in" / "val-2.tar", [("bad.png", b"no image"), ("none.txt", b"")])
    given = ShardSet(str(tmp_path / "in" / "val-{0..3}.tar"), count=9)
    run = evaluation(tmp_path / "out", shards, images=given, make_codec=lambda device: Halved())
    summary = run.run()
    reasons = {failure["image"]: failure["reason"] for failure in summary["failed"]}
    assert "q50: p0.png: decoded to 28x20 pixels, the original has 56x40" in reasons["val-0/p0"]
    assert reasons["val-0/p1"] == "q10: 'lost'"
    assert "val-1.tar" in reasons["val-1.tar"]  # cut short
    assert "not an image" in reasons["val-2/bad"]
    assert "no file to process" in reasons["val-2/none"]
    assert "no such file" in reasons["val-3.tar"]
    assert "have 5 images, the set has 9" in reasons["number"]
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
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*more: str) -> None:
        words = [
            "codec=jpeg",
            "qualities=[10,50]",
            "metrics=none",
            "testset=shards",
            f"out={tmp_path / 'out'}",
        ]
        evaluate.main([*words, *more])

    def exit_code(*more: str) -> Any:
        capsys.readouterr()
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
    assert "center_crop was 32, is null" in capsys.readouterr().out
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Journal, "add", Mock(side_effect=full))
    assert exit_code(f"testset.path={shards}", "overwrite=true") == 3
    assert "run the same command again" in capsys.readouterr().out
