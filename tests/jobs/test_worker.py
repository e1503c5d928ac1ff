"""Shards in, shards out: every sample once, whatever happens in between, and a manifest that adds up."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from glc.errors import MemoryLimitError
from glc.io import atomic
from glc.jobs import tar_shards
from glc.jobs.manifest import Folder, JobError
from glc.jobs.run import UnfinishedError
from glc.jobs.tar_shards import Journal, Log, find_shards
from glc.jobs.worker import ShardProgress
from tests.jobs.stand_ins import Reverser, code, contents, read_tar, write_tar

Files = dict[str, bytes]
Patch = pytest.MonkeyPatch


@pytest.fixture
def coded(monkeypatch: Patch) -> list[str]:
    """The names of the files that are processed from here on."""
    names: list[str] = []
    process = Reverser.process_file

    def noted(self: Reverser, data: bytes, name: str) -> Any:
        names.append(name)
        return process(self, data, name)

    monkeypatch.setattr(Reverser, "process_file", noted)
    return names


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def whole(shards: Path, tmp_path: Path) -> Files:
    """The files of a job that nothing disturbed."""
    code(shards, tmp_path / "whole")
    return contents(tmp_path / "whole")


def failures(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]


def fail_at(patch: Patch, key: str) -> None:
    """Let the disk be full at a sample."""
    add = Journal.add

    def full(self: Journal, sample: str, *rest: Any, **result: Any) -> None:
        if sample == key:
            self._tar.write(b"half of")  # what a full disk takes before it says so
            self._tar.flush()
            raise OSError(errno.ENOSPC, "No space left on device", str(self.part))
        add(self, sample, *rest, **result)

    patch.setattr(Journal, "add", full)


def test_every_sample_is_processed_once_and_the_totals_add_up(shards: Path, out: Path) -> None:
    totals = code(shards, out)
    assert (totals["samples"], totals["done"], totals["failed"]) == (15, 13, 2)
    assert totals["coded_bytes"] == 13 * len("text 0 0")
    assert totals["bpp"] == 8 * totals["coded_bytes"] / (13 * 10)
    files = read_tar(out / "in-1.tar")
    assert list(files) == [f"1-{i}.{s}" for i in (0, 1, 3, 4) for s in ("rev", "json")]
    assert files["1-3.rev"] == b"text 1 3"[::-1]
    manifest = json.loads((out / "manifest.json").read_text())
    for shard in manifest["shards"]:
        assert (out / shard["name"]).stat().st_size == shard["bytes"]
    bad, other = failures(out)
    assert [(f["shard"], f["key"]) for f in (bad, other)] == [("in-1.tar", "1-2"), ("in-2.tar", "2-0")]
    assert bad["error"] == "1-2.txt: says bad"
    assert "2-0.csv" in other["error"]


def test_a_kill_at_any_write_loses_at_most_one_sample(
    shards: Path, out: Path, whole: Files, coded: list[str], monkeypatch: Patch
) -> None:
    left = 0

    class Killed(BaseException):
        pass

    def killing(function: Any) -> Any:
        """Let a kill come before and after each call, once the count has run out."""

        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            for step in (False, True):
                left -= 1
                if left < 0:
                    raise Killed
                if not step:
                    result = function(*args, **options)
            return result

        return call

    monkeypatch.setattr(Log, "append", killing(Log.append))
    monkeypatch.setattr(tar_shards, "publish", killing(atomic.publish))
    monkeypatch.setattr(Folder, "write_record", killing(Folder.write_record))
    kills = 0
    for kills in range(80):
        left = kills % 7
        try:
            code(shards, out)
            break
        except Killed:
            pass
    monkeypatch.undo()
    code(shards, out)
    assert contents(out) == whole
    assert 10 < kills < 80
    assert len(coded) <= 14 + kills


def test_a_kill_between_shard_and_record_leaves_no_wrong_shard(
    shards: Path, out: Path, monkeypatch: Patch
) -> None:
    """A new shard of the same size as the old one, under settings that changed."""
    code(shards, out)
    old = contents(out)["in-0.tar"]
    other = {"command": "copy"}

    def copy(self: Reverser, data: bytes, name: str) -> Any:
        found = process(self, data, name)
        return type(found)([("rev", data)], found.pixels, found.coded_bytes)

    process = Reverser.process_file
    monkeypatch.setattr(Reverser, "process_file", copy)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_record", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            code(shards, out, settings=other, force=True)
    code(shards, out, settings=other)
    assert len(contents(out)["in-0.tar"]) == len(old)
    assert read_tar(out / "in-0.tar")["0-0.rev"] == b"text 0 0"


def test_a_command_whose_settings_were_replaced_stops(shards: Path, out: Path) -> None:
    """Another command takes the folder over while this one works, and does not count its shards."""

    class Replaced(Reverser):
        def process_file(self, data: bytes, name: str) -> Any:
            if name == "1-0.txt":
                folder = Folder(out, {"command": "other", "threads": 1})
                folder.prepare([], True, time.time())
            return super().process_file(data, name)

    with pytest.raises((JobError, UnfinishedError)):
        code(shards, out, make=lambda local_rank: Replaced(keep=True))
    folder = Folder(out, {"command": "other", "threads": 1})
    assert [folder.record(shard) for shard in find_shards([str(shards)])] == [None] * 3


def test_processes_share_the_shards_and_outlive_one_another(
    shards: Path, out: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    write_tar(shards / "in-3.tar", [("3-0.txt", b"slow"), ("3-1.txt", b"kill"), ("3-2.txt", b"last")])
    code(shards, tmp_path / "alone")
    monkeypatch.setenv("GLC_TEST_KILL", "1")
    with pytest.raises(UnfinishedError, match=r"1 of 4 shards.*SIGKILL.*same command"):
        code(shards, out, processes=2)
    assert not (out / "manifest.json").exists()
    monkeypatch.delenv("GLC_TEST_KILL")
    code(shards, out)
    assert contents(out) == contents(tmp_path / "alone")


def test_missing_and_truncated_shards_are_reported_and_done_once_fixed(
    shards: Path, out: Path, whole: Files
) -> None:
    good = {path.name: path.read_bytes() for path in shards.iterdir()}
    # Of a sample before the cut nobody knows whether it is whole.
    (shards / "in-0.tar").write_bytes(good["in-0.tar"][: 2 * 2048 + 100])
    (shards / "in-1.tar").write_bytes(b"nothing")
    (shards / "in-2.tar").unlink()
    totals = code(shards / "in-{0..2}.tar", out)
    assert (totals["broken_shards"], totals["done"]) == (3, 1)
    assert set(contents(out)) == {"in-0.tar", "manifest.json", "failures.jsonl"}
    assert [f["key"] for f in failures(out)] == [None] * 3
    assert "no such file" in failures(out)[2]["error"]
    for name, content in good.items():
        (shards / name).write_bytes(content)
    code(shards, out)
    assert contents(out) == whole


def test_a_full_disk_stops_and_loses_nothing(
    shards: Path, out: Path, whole: Files, monkeypatch: Patch
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, "1-3")
        with pytest.raises(UnfinishedError, match=r"2 of 3 shards.*No space left.*same command"):
            code(shards, out)
    assert set(contents(out)) == {"in-0.tar"}
    code(shards, out)
    assert contents(out) == whole


@pytest.mark.parametrize("shortage", [MemoryLimitError("9 GB: allow more with --memory"), MemoryError()])
def test_a_sample_without_memory_does_not_stop_other_shards(
    shards: Path, out: Path, whole: Files, monkeypatch: Patch, shortage: Exception
) -> None:
    process = Reverser.process_file

    def short(self: Reverser, data: bytes, name: str) -> Any:
        if data == b"text 0 3":
            raise shortage
        return process(self, data, name)

    with monkeypatch.context() as patch:
        patch.setattr(Reverser, "process_file", short)
        with pytest.raises(UnfinishedError, match=r"1 of 3 shards.*0-3: .*[mM]emory"):
            code(shards, out)
    assert set(contents(out)) == {"in-1.tar", "in-2.tar"}
    code(shards, out)
    assert contents(out) == whole


def test_a_changed_source_of_the_same_size_is_processed_again(shards: Path, out: Path) -> None:
    code(shards, out)
    good = contents(out)
    shard = shards / "in-0.tar"
    before = shard.stat()
    write_tar(shard, [("0-0.txt", b"repacked" * 1500)])
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert shard.stat().st_size == before.st_size  # tar files are padded
    code(shards, out)
    assert read_tar(out / "in-0.tar") == {"0-0.rev": b"dekcaper" * 1500}
    assert contents(out)["in-1.tar"] == good["in-1.tar"]


@pytest.mark.parametrize("kind", ["json", "journal"])
def test_records_of_older_versions_without_mtime_are_compared_by_size(
    shards: Path, out: Path, monkeypatch: Patch, coded: list[str], kind: str
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, "2-4")
        with pytest.raises(UnfinishedError):
            code(shards, out)
    folder, found = Folder(out), find_shards([str(shards)])
    # Shard 0 is finished, shard 2 underway.
    path = folder.note(found[0 if kind == "json" else 2], kind)
    lines = path.read_text().splitlines() if kind == "journal" else [path.read_text()]
    note = json.loads(lines[0])
    if kind == "json":
        del note["source_mtime_ns"], note["settings"]
    else:
        del note["source"]["mtime_ns"]
    path.write_text("".join(line + "\n" for line in [json.dumps(note), *lines[1:]]))
    coded.clear()
    code(shards, out)
    assert coded == ["2-4.txt"]


def test_force_repeats_a_job_finished_before_this_command(
    shards: Path, out: Path, monkeypatch: Patch, coded: list[str]
) -> None:
    def again(**options: Any) -> int:
        coded.clear()
        code(shards, out, **options)
        return len(coded)

    began = time.time()
    assert again() == 14
    whole = contents(out)
    assert again() == 0
    # Of one command on several machines, the last to begin may find all done.
    assert again(force=True, began=began) == 0
    assert again(force=True) == 14
    assert contents(out) == whole
    # One that was interrupted resumes.
    with monkeypatch.context() as patch:
        fail_at(patch, "1-0")
        with pytest.raises(UnfinishedError, match="run the same command again to resume"):
            again(force=True)
    assert again(force=True) == 9
    assert contents(out) == whole


def test_settings_of_a_job_that_did_not_start_are_replaced(shards: Path, out: Path) -> None:
    def fails(local_rank: int) -> Reverser:
        raise LookupError

    with pytest.raises(LookupError):
        code(shards, out, settings={"command": "typo"}, make=fails)
    assert code(shards, out)["done"] == 13
    with pytest.raises(JobError, match="command was"):
        code(shards, out, settings={"command": "typo"})


def test_of_two_commands_that_start_together_one_is_refused(shards: Path, out: Path) -> None:
    def slow_to_load(local_rank: int) -> Reverser:
        code(shards, out)
        return Reverser(keep=True)

    with pytest.raises(JobError, match="another command"):
        code(shards, out, settings={"command": "other"}, make=slow_to_load)
    # Likewise where the other one has begun and has no sample yet.
    for note in (out / ".glc").glob("in-*"):
        note.unlink()
    with pytest.raises(JobError, match="command was"):
        code(shards, out, settings={"command": "other"})


def test_a_folder_has_shards_of_one_setting(shards: Path, out: Path) -> None:
    code(shards, out)
    with pytest.raises(JobError, match=r"keep was true, is false.*--force"):
        code(shards, out, keep=False)
    assert "0-0.json" in read_tar(out / "in-0.tar")
    code(shards, out, keep=False, force=True)
    assert set(read_tar(out / "in-0.tar")) == {f"0-{i}.rev" for i in range(5)}
    write_tar(out / "foreign" / "in-1.tar", [])
    with pytest.raises(JobError, match=r"in-1\.tar: already exists.*--force"):
        code(shards, out / "foreign")


def test_progress_counts_finished_and_partly_read_shards(shards: Path, tmp_path: Path) -> None:
    code(shards, tmp_path / "out")
    found = find_shards([str(shards)])
    folder = Folder(tmp_path / "out")
    progress = ShardProgress(folder, found)
    assert progress.look() == (progress.total, 3)
    folder.note(found[1], "json").unlink()
    folder.note(found[1], "journal").write_text('{"source": {}}\n{"read": 3000}\n{"read": 40')
    progress = ShardProgress(folder, found)
    rest = found[0].size() + found[2].size()
    assert progress.look() == (rest + 3000, 2)
    # The last line of a journal that is complete is that of the shard.
    folder.note(found[1], "journal").write_text('{"source": {}}\n{"read": 4000}\n{"sha256": ""}\n')
    assert ShardProgress(folder, found).look() == (rest + 4000, 2)
