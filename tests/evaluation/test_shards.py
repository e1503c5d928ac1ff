"""Evaluations of shards: the figures of a folder's, each picture once, whatever happens in between."""

import csv
import errno
import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hydra import compose, initialize_config_dir

from glc.evaluation.codecs.base import ImageCodec
from glc.evaluation.records import RecordsError
from glc.evaluation.report import build_report
from glc.evaluation.results import read_results
from glc.evaluation.shards import MakeMeasurer, Measurer, ShardEvaluation, ShardSet, are_shards
from glc.evaluation.testsets import Form, SetError
from glc.jobs.journal import Journal
from glc.jobs.manifest import CorpusError
from glc.jobs.run import UnfinishedError
from glc.launch import evaluate
from tests.evaluation.stand_ins import evaluation, make_jpeg, make_metrics, results, write_pictures
from tests.jobs.stand_ins import read_tar, write_tar
from tests.short_runs import ROOT


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def shards(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of two pictures, each with a text."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        members = []
        for i in (2 * shard, 2 * shard + 1):
            members += [(f"p{i}.txt", b"text"), (f"p{i}.png", (pictures / f"p{i}.png").read_bytes())]
        write_tar(folder / f"val-{shard}.tar", members)
    return folder


def over_shards(out: Path, path: Any, **changes: Any) -> ShardEvaluation:
    values: dict[str, Any] = {
        "out": out,
        "pictures": ShardSet(str(path)),
        "make_codec": partial(make_jpeg, (10, 50)),
        "make_metrics": make_metrics,
        "metrics": ["psnr", "ms_ssim", "difference", "lpips"],
        "device": "cpu",
        "progress": False,
    }
    return ShardEvaluation(**(values | changes))


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed; tests do not change it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    over_shards(out, shards).run()
    return out


def results_of(out: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    with (out / "per_image.csv").open(newline="") as file:
        return json.loads((out / "summary.json").read_text()), list(csv.DictReader(file))


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_the_figures_are_those_of_a_folder(finished: Path, pictures: Path, tmp_path: Path) -> None:
    evaluation(tmp_path / "folder", pictures).run()
    expected, expected_rows = results(tmp_path / "folder")
    summary, rows = results_of(finished)
    assert [row["picture"] for row in rows] == [f"val-{i // 2}/p{i}" for i in range(4) for _ in range(2)]
    for row, other in zip(rows, expected_rows, strict=True):
        assert row == {key: other[key] for key in row} | {"picture": row["picture"]}
    for point, other in zip(summary["points"], expected["points"], strict=True):
        assert point == {key: other[key] for key in point}
        assert set(other) - set(point) == {"difference"}
    assert summary["incomplete"] == expected["incomplete"]
    assert "all pictures of the set in one place" in summary["unavailable"]["difference"]
    assert "put them there" in summary["unavailable"]["lpips"]
    assert (summary["pictures"], summary["data"]["count"], summary["failed"]) == (4, 4, [])
    # What reads results reads these too, and makes a page without pictures of them.
    assert len(read_results(finished).rows) == 8
    assert f"{summary['points'][0]['psnr']:.2f}" in build_report([read_results(finished)])


def test_each_shard_has_its_line_and_all_adds_up(finished: Path) -> None:
    _, rows = results_of(finished)
    with (finished / "per_shard.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["shard"], line["label"]) for line in lines] == [
        (f"val-{i}.tar", label) for i in range(2) for label in ("q10", "q50")
    ]
    for line in lines:
        name = line["shard"].removesuffix(".tar")
        mine = [row for row in rows if (row["picture"][:5], row["label"]) == (name, line["label"])]
        assert int(line["bytes"]) == sum(int(row["bytes"]) for row in mine)
        assert float(line["psnr"]) == pytest.approx(sum(float(row["psnr"]) for row in mine) / 2)
        assert (line["pictures"], line["failed"]) == ("2", "0")
    totals = json.loads((finished / "manifest.json").read_text())["totals"]
    assert totals["coded_bytes"] == sum(int(row["bytes"]) for row in rows)
    assert (totals["samples"], totals["done"]) == (4, 4)
    assert list(read_tar(finished / "val-0.tar")) == ["p0.json", "p1.json"]


def test_files_are_kept_when_asked_for(shards: Path, finished: Path, tmp_path: Path) -> None:
    over_shards(tmp_path / "out", shards, keep=True).run()
    kept = read_tar(tmp_path / "out" / "val-1.tar")
    assert list(kept) == [
        f"p{i}.{suffix}" for i in (2, 3) for suffix in ("json", "q10.jpg", "q10.png", "q50.jpg", "q50.png")
    ]
    assert len(kept["p2.q10.jpg"]) == json.loads(kept["p2.json"])["q10"]["bytes"]
    assert (tmp_path / "out" / "per_image.csv").read_bytes() == (finished / "per_image.csv").read_bytes()


def test_killed_anywhere_it_goes_on_and_measures_each_picture_once(
    shards: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, replace = Measurer.code, Path.replace
    counter = {"measured": 0, "left": 0}

    def step() -> None:
        counter["left"] -= 1
        if counter["left"] < 0:
            raise KeyboardInterrupt

    def measured(self: Measurer, data: bytes, name: str) -> Any:
        counter["measured"] += 1
        made = code(self, data, name)
        step()
        return made

    def replaced(self: Path, target: Path) -> Path:
        step()  # before a file of results takes its place
        return replace(self, target)

    monkeypatch.setattr(Measurer, "code", measured)
    monkeypatch.setattr(Path, "replace", replaced)
    for survived in range(30):
        counter["left"] = 1 + survived % 3
        try:
            over_shards(tmp_path / "out", shards).run()
            break
        except KeyboardInterrupt:
            pass
    monkeypatch.undo()
    over_shards(tmp_path / "out", shards).run()
    assert survived > 4
    assert contents(tmp_path / "out") == contents(finished)
    # What was measured and not yet noted is measured again, no more.
    assert counter["measured"] <= 4 + survived


def test_what_is_finished_is_left_alone_and_what_is_gone_is_made_again(
    shards: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_shards(tmp_path / "out", shards).run()
    monkeypatch.setattr(Measurer, "code", lambda *_: pytest.fail("measured again"))
    before = (tmp_path / "out" / "per_image.csv").stat().st_mtime_ns
    assert over_shards(tmp_path / "out", shards).run() == results_of(finished)[0]
    assert (tmp_path / "out" / "per_image.csv").stat().st_mtime_ns == before
    (tmp_path / "out" / "per_shard.csv").unlink()
    over_shards(tmp_path / "out", shards).run()
    assert contents(tmp_path / "out") == contents(finished)
    monkeypatch.undo()
    (tmp_path / "out" / "val-0.tar").unlink()
    over_shards(tmp_path / "out", shards).run()
    assert contents(tmp_path / "out") == contents(finished)


def test_processes_get_all_that_they_need(finished: Path) -> None:
    make = MakeMeasurer(
        partial(make_jpeg, (10, 50)), make_metrics, ("lpips",), ["cpu"], Form("x"), False, 2, 1, 0
    )
    again = pickle.loads(pickle.dumps(make))
    data = (finished / "val-0.tar").read_bytes()
    with pytest.raises(ValueError, match="not a picture"):
        again(1).code(data, "p.png")


class Halved(ImageCodec):
    """Loses pictures of 48 rows, and makes others smaller at quality 50."""

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


def test_what_fails_is_told_of_and_means_are_over_the_same_pictures(
    shards: Path, pictures: Path, tmp_path: Path
) -> None:
    whole = (shards / "val-1.tar").read_bytes()
    write_tar(tmp_path / "in" / "val-0.tar", read_tar(shards / "val-0.tar").items())
    (tmp_path / "in" / "val-1.tar").write_bytes(whole.rstrip(b"\0")[:-100])
    write_tar(tmp_path / "in" / "val-2.tar", [("bad.png", b"no picture"), ("none.txt", b"")])
    given = ShardSet(str(tmp_path / "in" / "val-{0..3}.tar"), count=9)
    run = over_shards(tmp_path / "out", shards, pictures=given, make_codec=lambda device: Halved())
    summary = run.run()
    reasons = {failure["picture"]: failure["reason"] for failure in summary["failed"]}
    assert "q50: p0.png: decoded to 28x20 pixels, the original has 56x40" in reasons["val-0/p0"]
    assert reasons["val-0/p1"] == "q10: 'lost'"
    assert "val-1.tar" in reasons["val-1.tar"]  # cut short
    assert "not a picture" in reasons["val-2/bad"]
    assert "nothing to code" in reasons["val-2/none"]
    assert "no such file" in reasons["val-3.tar"]
    assert "have 5 pictures, the set has 9" in reasons["number"]
    assert [point["pictures"] for point in summary["points"]] == [1, 1]  # p2
    assert summary["data"]["count"] == 5


def test_a_full_disk_loses_nothing(
    shards: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Journal.add

    def full(self: Journal, key: str, *rest: Any, **result: Any) -> None:
        if key == "p3":
            raise OSError(errno.ENOSPC, "No space left on device", str(self.part))
        add(self, key, *rest, **result)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        with pytest.raises(UnfinishedError, match=r"1 of 2 shards.*No space left.*same command"):
            over_shards(tmp_path / "out", shards).run()
    assert not (tmp_path / "out" / "summary.json").exists()
    over_shards(tmp_path / "out", shards).run()
    assert contents(tmp_path / "out") == contents(finished)


def test_what_cannot_be_done_is_said(shards: Path, pictures: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"settings was .*give another out=, or overwrite=true"):
        over_shards(finished, shards, make_codec=partial(make_jpeg, (10,))).run()
    with pytest.raises(ValueError, match="written over"):
        over_shards(shards, shards).run()
    with pytest.raises(SetError, match=r"testset\.limit goes with a folder"):
        ShardSet(str(shards), limit=3)
    with pytest.raises(SetError, match="none of 2 shards"):
        ShardSet("missing-{0..1}.tar")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").touch()
    with pytest.raises(RecordsError, match="evaluation of a folder"):
        over_shards(tmp_path / "out", shards).run()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        over_shards(tmp_path / "file", shards).run()
    # A folder is one of shards only when it has no pictures.
    assert are_shards(str(shards))
    assert are_shards([str(shards)])
    assert not are_shards(str(pictures))
    assert not are_shards(None)


def test_from_the_configuration(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run(*more: str) -> None:
        words = [
            "codec=jpeg",
            "qualities=[10,50]",
            "metrics=none",
            "testset=shards",
            f"out={tmp_path / 'out'}",
        ]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("evaluate", [*words, *more])
        evaluate.run(cfg)

    def exit_code(*more: str) -> Any:
        caplog.clear()
        with pytest.raises(SystemExit) as caught:
            run(*more)
        return caught.value.code

    run(f"testset.path='{shards}/val-{{0..1}}.tar'", "testset.center_crop=32")
    summary, _ = results_of(tmp_path / "out")
    assert (summary["pictures"], summary["data"]["name"]) == (4, "shards")
    assert summary["data"]["preparation"]["center_crop"] == 32
    figures = json.loads(read_tar(tmp_path / "out" / "val-0.tar")["p0.json"])
    assert (figures["q10"]["width"], figures["q10"]["height"]) == (32, 32)
    assert exit_code(f"testset.path='{shards}/val-{{0..2}}.tar'", "testset.center_crop=32") == 1
    assert exit_code(f"testset.path={shards}") == 2
    assert "center_crop was 32, is null" in caplog.text
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Journal, "add", Mock(side_effect=full))
    assert exit_code(f"testset.path={shards}", "overwrite=true") == 3
    assert "the same command goes on" in caplog.text
