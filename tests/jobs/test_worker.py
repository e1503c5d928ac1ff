"""Shards in, shards out: every sample once, whatever happens in between, and a manifest that adds up."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from glc.errors import MemoryLimitError
from glc.io import atomic
from glc.jobs import tar_shards
from glc.jobs.manifest import Folder, JobError
from glc.jobs.run import UnfinishedError
from glc.jobs.tar_shards import Journal, Log, find_shards
from glc.jobs.worker import ShardProgress
from tests.jobs.stand_ins import Reverser, code, contents, read_tar, write_tar


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are processed from here on."""
    names: list[str] = []
    process = Reverser.process_file

    def noted(self: Reverser, data: bytes, name: str) -> Any:
        names.append(name)
        return process(self, data, name)

    monkeypatch.setattr(Reverser, "process_file", noted)
    return names


def fail_at(patch: pytest.MonkeyPatch, key: str) -> None:
    """Let the disk be full at a sample."""
    add = Journal.add

    def full(self: Journal, sample: str, *rest: Any, **result: Any) -> None:
        if sample == key:
            self._tar.write(b"half of")  # what a full disk takes before it says so
            self._tar.flush()
            raise OSError(errno.ENOSPC, "No space left on device", str(self.part))
        add(self, sample, *rest, **result)

    patch.setattr(Journal, "add", full)


def test_every_sample_is_processed_once_and_the_totals_add_up(shards: Path, tmp_path: Path) -> None:
    totals = code(shards, tmp_path / "out")
    assert (totals["samples"], totals["done"], totals["failed"]) == (15, 13, 2)
    assert totals["coded_bytes"] == 13 * len("text 0 0")
    assert totals["bpp"] == 8 * totals["coded_bytes"] / (13 * 10)
    files = read_tar(tmp_path / "out" / "in-1.tar")
    assert list(files) == [f"1-{i}.{s}" for i in (0, 1, 3, 4) for s in ("rev", "json")]
    assert files["1-3.rev"] == b"text 1 3"[::-1]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for shard in manifest["shards"]:
        assert (tmp_path / "out" / shard["name"]).stat().st_size == shard["bytes"]
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [(f["shard"], f["key"]) for f in failures] == [("in-1.tar", "1-2"), ("in-2.tar", "2-0")]
    assert failures[0]["error"] == "1-2.txt: says bad"
    assert "2-0.csv" in failures[1]["error"]


def test_other_files_are_kept_only_when_asked_for(shards: Path, tmp_path: Path) -> None:
    code(shards, tmp_path / "out", keep=False)
    assert set(read_tar(tmp_path / "out" / "in-0.tar")) == {f"0-{i}.rev" for i in range(5)}


def test_a_kill_at_any_write_loses_at_most_one_sample(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coded: list[str]
) -> None:
    code(shards, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    coded.clear()
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
            code(shards, tmp_path / "out")
            break
        except Killed:
            pass
    monkeypatch.undo()
    code(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    assert 10 < kills < 80
    assert len(coded) <= 14 + kills


def test_a_kill_between_shard_and_record_leaves_no_wrong_shard(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new shard of the same size as the old one, under settings that changed."""
    code(shards, tmp_path / "out")
    old = contents(tmp_path / "out")["in-0.tar"]
    other = {"command": "copy"}

    def copy(self: Reverser, data: bytes, name: str) -> Any:
        found = process(self, data, name)
        return type(found)([("rev", data)], found.pixels, found.coded_bytes)

    process = Reverser.process_file
    monkeypatch.setattr(Reverser, "process_file", copy)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            code(shards, tmp_path / "out", settings=other, force=True)
    code(shards, tmp_path / "out", settings=other)
    new = contents(tmp_path / "out")["in-0.tar"]
    assert len(new) == len(old)
    assert read_tar(tmp_path / "out" / "in-0.tar")["0-0.rev"] == b"text 0 0"


def test_a_command_whose_settings_were_replaced_stops(shards: Path, tmp_path: Path) -> None:
    """Another command takes the folder over while this one works, and does not count its shards."""

    class Replaced(Reverser):
        def process_file(self, data: bytes, name: str) -> Any:
            if name == "1-0.txt":
                folder = Folder(tmp_path / "out", {"command": "other", "threads": 1})
                folder.prepare([], True, time.time())
            return super().process_file(data, name)

    with pytest.raises((JobError, UnfinishedError)):
        code(shards, tmp_path / "out", make=lambda local_rank: Replaced(keep=True))
    folder = Folder(tmp_path / "out", {"command": "other", "threads": 1})
    assert [folder.record(shard) for shard in find_shards([str(shards)])] == [None] * 3


def test_processes_share_the_shards_and_outlive_one_another(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(shards / "in-3.tar", [("3-0.txt", b"slow"), ("3-1.txt", b"kill"), ("3-2.txt", b"last")])
    code(shards, tmp_path / "alone")
    monkeypatch.setenv("GLC_TEST_KILL", "1")
    with pytest.raises(UnfinishedError, match=r"1 of 4 shards.*SIGKILL.*same command"):
        code(shards, tmp_path / "out", processes=2)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.delenv("GLC_TEST_KILL")
    code(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_missing_and_truncated_shards_are_reported_and_done_once_fixed(shards: Path, tmp_path: Path) -> None:
    code(shards, tmp_path / "whole")
    good = {path.name: path.read_bytes() for path in shards.iterdir()}
    # Of a sample before the cut nobody knows whether it is whole.
    (shards / "in-0.tar").write_bytes(good["in-0.tar"][: 2 * 2048 + 100])
    (shards / "in-1.tar").write_bytes(b"nothing")
    (shards / "in-2.tar").unlink()
    totals = code(shards / "in-{0..2}.tar", tmp_path / "out")
    assert (totals["broken_shards"], totals["done"]) == (3, 1)
    assert set(contents(tmp_path / "out")) == {"in-0.tar", "manifest.json", "failures.jsonl"}
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [f["key"] for f in failures] == [None] * 3
    assert "no such file" in failures[2]["error"]
    for name, content in good.items():
        (shards / name).write_bytes(content)
    code(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_stops_and_loses_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code(shards, tmp_path / "whole")
    with monkeypatch.context() as patch:
        fail_at(patch, "1-3")
        with pytest.raises(UnfinishedError, match=r"2 of 3 shards.*No space left.*same command"):
            code(shards, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"in-0.tar"}
    code(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("shortage", [MemoryLimitError("9 GB: allow more with --memory"), MemoryError()])
def test_a_sample_without_memory_does_not_stop_other_shards(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortage: Exception
) -> None:
    code(shards, tmp_path / "whole")
    process = Reverser.process_file

    def short(self: Reverser, data: bytes, name: str) -> Any:
        if data == b"text 0 3":
            raise shortage
        return process(self, data, name)

    with monkeypatch.context() as patch:
        patch.setattr(Reverser, "process_file", short)
        with pytest.raises(UnfinishedError, match=r"1 of 3 shards.*0-3: .*[mM]emory"):
            code(shards, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"in-1.tar", "in-2.tar"}
    code(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_changed_source_of_the_same_size_is_processed_again(shards: Path, tmp_path: Path) -> None:
    code(shards, tmp_path / "out")
    good = contents(tmp_path / "out")
    shard = shards / "in-0.tar"
    before = shard.stat()
    write_tar(shard, [("0-0.txt", b"repacked" * 1500)])
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert shard.stat().st_size == before.st_size  # tar files are padded
    code(shards, tmp_path / "out")
    assert read_tar(tmp_path / "out" / "in-0.tar") == {"0-0.rev": b"dekcaper" * 1500}
    assert contents(tmp_path / "out")["in-1.tar"] == good["in-1.tar"]


@pytest.mark.parametrize("kind", ["json", "journal"])
def test_records_of_older_versions_without_mtime_are_compared_by_size(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coded: list[str], kind: str
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, "2-4")
        with pytest.raises(UnfinishedError):
            code(shards, tmp_path / "out")
    folder, found = Folder(tmp_path / "out"), find_shards([str(shards)])
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
    code(shards, tmp_path / "out")
    assert coded == ["2-4.txt"]


def test_force_repeats_a_job_finished_before_this_command(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coded: list[str]
) -> None:
    def again(**options: Any) -> int:
        coded.clear()
        code(shards, tmp_path / "out", **options)
        return len(coded)

    began = time.time()
    assert again() == 14
    whole = contents(tmp_path / "out")
    assert again() == 0
    # Of one command on several machines, the last to begin may find all done.
    assert again(force=True, began=began) == 0
    assert again(force=True) == 14
    assert contents(tmp_path / "out") == whole
    # One that was interrupted resumes.
    with monkeypatch.context() as patch:
        fail_at(patch, "1-0")
        with pytest.raises(UnfinishedError, match="run the same command again to resume"):
            again(force=True)
    assert again(force=True) == 9
    assert contents(tmp_path / "out") == whole


def test_settings_of_a_job_that_did_not_start_are_replaced(shards: Path, tmp_path: Path) -> None:
    def fails(local_rank: int) -> Reverser:
        raise LookupError

    with pytest.raises(LookupError):
        code(shards, tmp_path / "out", settings={"command": "typo"}, make=fails)
    assert code(shards, tmp_path / "out")["done"] == 13
    with pytest.raises(JobError, match="command was"):
        code(shards, tmp_path / "out", settings={"command": "typo"})


def test_of_two_commands_that_start_together_one_is_refused(shards: Path, tmp_path: Path) -> None:
    def slow_to_load(local_rank: int) -> Reverser:
        code(shards, tmp_path / "out")
        return Reverser(keep=True)

    with pytest.raises(JobError, match="another command"):
        code(shards, tmp_path / "out", settings={"command": "other"}, make=slow_to_load)
    # Likewise where the other one has begun and has no sample yet.
    for note in (tmp_path / "out" / ".glc").glob("in-*"):
        note.unlink()
    with pytest.raises(JobError, match="command was"):
        code(shards, tmp_path / "out", settings={"command": "other"})


def test_a_folder_has_shards_of_one_setting(shards: Path, tmp_path: Path) -> None:
    code(shards, tmp_path / "out")
    with pytest.raises(JobError, match=r"keep was true, is false.*--force"):
        code(shards, tmp_path / "out", keep=False)
    assert "0-0.json" in read_tar(tmp_path / "out" / "in-0.tar")
    code(shards, tmp_path / "out", keep=False, force=True)
    assert "0-0.json" not in read_tar(tmp_path / "out" / "in-0.tar")
    write_tar(tmp_path / "foreign" / "in-1.tar", [])
    with pytest.raises(JobError, match=r"in-1\.tar: already exists.*--force"):
        code(shards, tmp_path / "foreign")


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
