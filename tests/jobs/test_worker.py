"""Shards in, shards out: every sample once, whatever happens in between, and a manifest that adds up."""

import errno
import hashlib
import json
import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import Mock

import pytest

from glc.errors import MemoryLimitError
from glc.jobs import manifest, worker
from glc.jobs.engines import Engine
from glc.jobs.manifest import Folder, JobError, Record
from glc.jobs.run import PartFinished, UnfinishedError
from glc.jobs.storage import LocalStore
from glc.jobs.tar_shards import find_shards
from glc.jobs.worker import FileProcessor, Processed, ShardWorker
from tests.jobs.stand_ins import SETTINGS, KillAt, Killed, Reverser, code, contents, read_tar, write_tar

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


def manifest_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def assert_true(out: Path) -> None:
    """Each shard has the size and the SHA-256 of the manifest."""
    for shard in manifest_of(out)["shards"]:
        data = (out / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])


def stop_at(patch: Patch, key: str, error: BaseException) -> None:
    """Raise an error when a sample is written, after the sample before it."""
    write = worker.member_bytes

    def member_bytes(name: str, data: bytes) -> bytes:
        if name.startswith(f"{key}."):
            raise error
        return write(name, data)

    patch.setattr(worker, "member_bytes", member_bytes)


def test_every_sample_is_processed_once_and_the_totals_add_up(shards: Path, out: Path) -> None:
    totals = code(shards, out)
    assert (totals["samples"], totals["done"], totals["failed"]) == (15, 13, 2)
    assert totals["coded_bytes"] == 13 * len("text 0 0")
    assert totals["bpp"] == 8 * totals["coded_bytes"] / (13 * 10)
    files = read_tar(out / "in-1.tar")
    assert list(files) == [f"1-{i}.{s}" for i in (0, 1, 3, 4) for s in ("rev", "json")]
    assert files["1-3.rev"] == b"text 1 3"[::-1]
    assert_true(out)
    bad, other = failures(out)
    assert [(f["shard"], f["key"]) for f in (bad, other)] == [("in-1.tar", "1-2"), ("in-2.tar", "2-0")]
    assert bad["error"] == "1-2.txt: says bad"
    assert "2-0.csv" in other["error"]


def test_a_kill_before_or_after_any_step_leaves_what_an_undisturbed_job_leaves(
    shards: Path, out: Path, whole: Files, monkeypatch: Patch
) -> None:
    """Each call that changes the folder is a step; the job is killed at the first, then at the second, ..."""
    killing = KillAt(0)
    for name in ("create", "move", "remove", "fence", "makedirs"):
        monkeypatch.setattr(LocalStore, name, killing(getattr(LocalStore, name)))
    kills = 0
    while True:
        kills += 1
        place, killing.left = out / str(kills), kills
        try:
            code(shards, place)
            break
        except Killed:
            killing.left = 0
        code(shards, place)
        assert contents(place) == whole
        assert not list((place / ".glc").glob("*/*.tar.*[!n]"))  # no attempts are left, only records
    assert kills > 30


@pytest.mark.parametrize("force", [False, True])
def test_a_kill_at_any_step_of_a_repeated_job_keeps_no_old_shard(
    shards: Path, tmp_path: Path, monkeypatch: Patch, force: bool
) -> None:
    """The new shards have the size of the old ones. 0.1 took an old one for a new one."""
    other = {"command": "copy"}
    code(shards, tmp_path / "whole", settings=other, make=lambda rank: Copier(keep=True))
    expected = contents(tmp_path / "whole")
    for step in range(1, 30):
        out = tmp_path / str(step)
        code(shards, out)
        old = (out / "in-0.tar").read_bytes()
        with monkeypatch.context() as patch:
            moves = 0

            def killing(self: LocalStore, name: str, to: str, step: int = step) -> None:
                nonlocal moves
                moves += 1
                if moves == step:
                    raise Killed
                os.replace(self.root / name, self.root / to)

            patch.setattr(LocalStore, "move", killing)
            try:
                code(shards, out, settings=other, force=True, make=lambda rank: Copier(keep=True))
                break
            except Killed:
                pass
        code(shards, out, settings=other, force=force, make=lambda rank: Copier(keep=True))
        assert contents(out) == expected
        assert len(contents(out)["in-0.tar"]) == len(old)
        assert contents(out)["in-0.tar"] != old
    assert step > 5


class Copier(Reverser):
    """Copies `.txt` files: other shards of the same size."""

    def process_file(self, data: bytes, name: str) -> Processed:
        found = super().process_file(data, name)
        return Processed([("rev", data)], found.pixels, found.coded_bytes)


class Interrupting(Reverser):
    """Runs something before a sample, as another process would meanwhile."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        super().__init__(keep=True)
        self.name, self.action = name, action

    def process_file(self, data: bytes, name: str) -> Processed:
        if name == self.name:
            self.action()
        return super().process_file(data, name)


@pytest.mark.parametrize("at", ["0-0.txt", "1-1.txt", "2-4.txt"])
def test_force_over_a_job_that_works_leaves_the_shards_of_the_last_settings(
    shards: Path, out: Path, tmp_path: Path, at: str
) -> None:
    def force() -> None:
        code(shards, out, settings={"command": "copy"}, force=True, make=lambda rank: Copier(keep=True))

    code(shards, tmp_path / "alone", settings={"command": "copy"}, make=lambda rank: Copier(keep=True))
    code(shards, out, settings={"command": "first"})
    with pytest.raises(UnfinishedError, match="another command has started anew there"):
        code(shards, out, force=True, make=lambda rank: Interrupting(at, force))
    assert contents(out) == contents(tmp_path / "alone")
    assert_true(out)


def test_a_process_that_stops_at_any_step_and_wakes_after_a_new_job_changes_nothing(
    shards: Path, out: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    def copy(place: Path, **options: Any) -> None:
        code(shards, place, settings={"command": "copy"}, make=lambda rank: Copier(keep=True), **options)

    copy(tmp_path / "alone")
    expected = contents(tmp_path / "alone")
    for step in range(1, 200):
        place, calls = out / str(step), 0

        def sleeping(function: Any, step: int = step, place: Path = place) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == step:
                    copy(place, force=True)
                return function(*args, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("create", "move", "remove", "fence"):
                patch.setattr(LocalStore, name, sleeping(getattr(LocalStore, name)))
            with suppress(JobError, UnfinishedError):
                code(shards, place)
            if calls < step:
                break
        for shard in ("in-0.tar", "in-1.tar", "in-2.tar"):
            assert (place / shard).read_bytes() == expected[shard], step
        copy(place)
        assert contents(place) == expected
    assert step > 15


class Random(FileProcessor):
    """Output that differs in every attempt, and some pauses."""

    def __init__(self, seed: int) -> None:
        super().__init__(keep=False)
        self.random = random.Random(seed)

    def accepts(self, name: str) -> bool:
        return name.endswith(".txt")

    def process_file(self, data: bytes, name: str) -> Processed:
        threading.Event().wait(self.random.random() / 500)
        return Processed([("rev", self.random.randbytes(600))], 10, 600)


@pytest.mark.parametrize("seed", range(60))
def test_of_two_live_processes_on_one_shard_one_publishes_and_its_record_is_true(
    shards: Path, out: Path, seed: int
) -> None:
    """As after a lock that lies: both believe that the shard is theirs."""
    (shard,) = find_shards([str(shards / "in-0.tar")])
    folder = Folder(out, SETTINGS)
    folder.prepare([shard])
    attempts: list[bytes] = []
    records: list[Record] = []

    class Noting(LocalStore):
        def create(self, name: str, data: bytes) -> bool:
            if name.endswith("in-0.tar.json"):
                record = json.loads(data)
                attempts.append((self.root / folder.run / f"in-0.tar.{record['attempt']}").read_bytes())
            return super().create(name, data)

    def work(number: int) -> None:
        mine = Folder(out, SETTINGS)
        mine.store, mine.run = Noting(out), folder.run
        records.append(ShardWorker(mine, Random(1000 * seed + number)).run_one(shard))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    published = (out / "in-0.tar").read_bytes()
    assert published in attempts
    assert records[0] == records[1]
    assert (records[0].bytes, records[0].sha256) == (len(published), hashlib.sha256(published).hexdigest())
    assert len(read_tar(out / "in-0.tar")) == 5


def test_an_attempt_that_is_written_to_by_others_is_recorded_as_it_is(
    shards: Path, out: Path, monkeypatch: Patch
) -> None:
    """The SHA-256 is that of the bytes on the disk, of whichever process."""

    def garble(file: BinaryIO, name: str) -> Any:
        with open(file.name, "r+b") as other:
            other.write(b"garbled")
        return hashlib_digest(file, name)

    hashlib_digest = hashlib.file_digest
    monkeypatch.setattr(worker.hashlib, "file_digest", garble)
    code(shards, out)
    assert_true(out)


def test_a_source_replaced_by_one_of_the_same_size_and_time_while_it_is_read(
    shards: Path, out: Path, tmp_path: Path
) -> None:
    """0.1 continued the half-done shard: keys of the old source twice, those of the new one lost."""
    source = shards / "in-0.tar"
    before = source.stat()
    replaced = write_tar(tmp_path / "new.tar", [(f"new-{i}.txt", b"new text") for i in range(10)])
    assert replaced.stat().st_size == before.st_size

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        code(shards, out, make=lambda rank: Interrupting("0-3.txt", stop))
    os.replace(replaced, source)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    code(shards, out)
    assert list(read_tar(out / "in-0.tar")) == [f"new-{i}.rev" for i in range(10)]


def test_a_source_that_changes_while_it_is_read_is_left_for_the_next_command(
    shards: Path, out: Path, whole: Files
) -> None:
    source = shards / "in-1.tar"
    changed = Interrupting("1-3.txt", lambda: os.utime(source, ns=(1, 1)))
    with pytest.raises(UnfinishedError, match=r"1 of 3 .*in-1\.tar: its source changed while it was read"):
        code(shards, out, make=lambda rank: changed)
    code(shards, out)
    assert contents(out) == whole


@pytest.mark.parametrize("hours", [-1, 1])
def test_force_does_not_depend_on_clocks(
    shards: Path, out: Path, coded: list[str], hours: int, monkeypatch: Patch
) -> None:
    """0.1 compared the manifest's time with this machine's clock."""
    code(shards, out)
    time = (out / "manifest.json").stat().st_mtime + 3600 * hours
    for path in (out / "manifest.json", *(out / ".glc").rglob("*")):
        os.utime(path, (time, time))
    coded.clear()
    code(shards, out, force=True)
    assert len(coded) == 14


def test_parts_share_the_shards_and_the_last_one_writes_the_manifest(
    shards: Path, out: Path, tmp_path: Path, whole: Files, coded: list[str]
) -> None:
    for part in (2, 0):
        with pytest.raises(PartFinished, match=rf"{1 + part // 2} of 3 shards are left to the other parts"):
            code(shards, out, engine=Engine(part=(part, 3)))
        assert not (out / "manifest.json").exists()
    code(shards, out, engine=Engine(part=(1, 3)))
    assert contents(out) == whole
    assert len(coded) == 14


def test_two_processes_and_a_kill_give_the_shards_of_one(
    shards: Path, out: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    write_tar(shards / "in-3.tar", [("3-0.txt", b"slow"), ("3-1.txt", b"kill"), ("3-2.txt", b"last")])
    code(shards, tmp_path / "alone")
    monkeypatch.setenv("GLC_TEST_KILL", "1")
    with pytest.raises(UnfinishedError, match=r"1 of 4 shards.*a worker process was killed.*same command"):
        code(shards, out, engine=Engine(processes=2))
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
    # The shard of a source that cannot be read any more is not left in place.
    (shards / "in-1.tar").write_bytes(b"nothing")
    code(shards, out)
    assert not (out / "in-1.tar").exists()


def test_a_full_disk_stops_and_keeps_finished_shards(
    shards: Path, out: Path, whole: Files, monkeypatch: Patch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, "1-3", OSError(errno.ENOSPC, "No space left on device", str(out)))
        with pytest.raises(UnfinishedError, match=r"2 of 3 shards.*No space left.*same command"):
            code(shards, out)
    assert set(contents(out)) == {"in-0.tar"}
    assert not list((out / ".glc").glob("*/*.tar.*[!n]"))
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


def test_a_changed_source_of_the_same_size_is_processed_again(
    shards: Path, out: Path, coded: list[str]
) -> None:
    code(shards, out)
    good = contents(out)
    shard = shards / "in-0.tar"
    before = shard.stat()
    write_tar(shard, [("0-0.txt", b"repacked" * 1500)])
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert shard.stat().st_size == before.st_size  # tar files are padded
    coded.clear()
    code(shards, out)
    assert coded == ["0-0.txt"]
    assert read_tar(out / "in-0.tar") == {"0-0.rev": b"dekcaper" * 1500}
    assert contents(out)["in-1.tar"] == good["in-1.tar"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"cut")])
def test_a_damaged_shard_is_written_again(
    shards: Path, out: Path, whole: Files, coded: list[str], damage: Callable[[Path], object]
) -> None:
    code(shards, out)
    coded.clear()
    damage(out / "in-2.tar")
    code(shards, out)
    assert {name[0] for name in coded} == {"2"}
    assert contents(out) == whole


def test_force_repeats_a_finished_job_and_resumes_an_unfinished_one(
    shards: Path, out: Path, monkeypatch: Patch, coded: list[str]
) -> None:
    def again(**options: Any) -> int:
        coded.clear()
        code(shards, out, **options)
        return len(coded)

    assert again() == 14
    whole = contents(out)
    assert again() == 0
    assert again(force=True) == 14
    assert contents(out) == whole
    with monkeypatch.context() as patch:
        stop_at(patch, "1-0", OSError(errno.ENOSPC, "full"))
        with pytest.raises(UnfinishedError, match="run the same command again to resume"):
            again(force=True)
    assert again(force=True) == 9
    assert contents(out) == whole


def test_retried_failures_process_only_the_failed_samples(
    shards: Path, out: Path, tmp_path: Path, coded: list[str], monkeypatch: Patch
) -> None:
    code(shards, out)
    assert code(shards, out, retry=True)["failed"] == 2
    before = manifest_of(out)
    good = write_tar(tmp_path / "good" / "in-1.tar", read_tar(shards / "in-1.tar").items())
    mended = {**read_tar(good), "1-2.txt": b"is good now"}

    class Mended(Reverser):
        def process_file(self, data: bytes, name: str) -> Processed:
            coded.append(name)
            return super().process_file(mended[name] if data == b"bad" else data, name)

    def retry(**options: Any) -> dict[str, Any]:
        coded.clear()
        return code(shards, out, make=lambda rank: Mended(keep=True), retry=True, **options)

    # A kill between the two shards: the same command does the rest.
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "add", Mock(side_effect=Killed))
        with pytest.raises(Killed):
            retry()
    totals = retry()
    assert coded == []  # 1-2 was processed before the kill; 2-0 has nothing to process
    assert (totals["done"], totals["failed"]) == (14, 1)
    assert totals["coded_bytes"] == before["totals"]["coded_bytes"] + len(b"is good now")
    files = read_tar(out / "in-1.tar")
    assert [name for name in files if name.endswith(".rev")] == [f"1-{i}.rev" for i in range(5)]
    assert files["1-2.rev"] == b"is good now"[::-1]
    assert_true(out)
    assert [f["key"] for f in failures(out)] == ["2-0"]


def test_retrying_does_not_keep_samples_of_a_shard_that_is_not_the_recorded_one(
    shards: Path, out: Path, whole: Files, coded: list[str]
) -> None:
    code(shards, out)
    data = bytearray((out / "in-1.tar").read_bytes())
    data[600] ^= 1
    (out / "in-1.tar").write_bytes(data)
    coded.clear()
    code(shards, out, retry=True)
    assert {name for name in coded if name[0] == "1"} == {f"1-{i}.txt" for i in range(5)}
    assert contents(out) == whole


def test_a_million_records_are_not_a_million_opens(
    shards: Path, out: Path, monkeypatch: Patch, whole: Files
) -> None:
    monkeypatch.setattr(manifest, "_COMPACTED", 2)
    code(shards, out)
    opened: list[str] = []
    read = LocalStore.read

    def noted(self: LocalStore, name: str) -> bytes | None:
        opened.append(name)
        return read(self, name)

    monkeypatch.setattr(LocalStore, "read", noted)
    code(shards, out)
    assert not [name for name in opened if name.endswith(".tar.json")]
    # Interrupted, all but the last few records are in one file too.
    with monkeypatch.context() as patch:
        stop_at(patch, "2-1", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            code(shards, out, force=True)
    opened.clear()
    code(shards, out)
    assert not [name for name in opened if name.endswith(("in-0.tar.json", "in-1.tar.json"))]
    assert contents(out) == whole


def test_a_member_of_the_samples_can_be_chosen(tmp_path: Path, out: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", [("0.a.txt", b"abc"), ("0.txt", b"def"), ("1.a.txt", b"ghi")])
    totals = code(tmp_path / "in", out, make=lambda rank: Reverser(keep=False, member="txt"))
    assert read_tar(out / "a.tar") == {"0.rev": b"fed"}
    assert totals["failed"] == 1
    assert "no file to process (1.a.txt)" in failures(out)[0]["error"]


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
    for note in (out / ".glc").glob("*/in-*"):
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


def test_a_folder_of_glc_0_1_is_refused_in_one_line_unless_forced(
    shards: Path, out: Path, whole: Files
) -> None:
    state = out / ".glc"
    state.mkdir(parents=True)
    (state / "settings.json").write_text(
        '{"format_version": 1, "command": "reverse", "keep": true, "threads": 1}'
    )
    (state / "in-0.tar.json").write_text("{}")
    (state / "in-1.tar.journal").touch()
    with pytest.raises(JobError, match=r"^[^\n]*format_version was 1, is 2\); choose another folder"):
        code(shards, out)
    code(shards, out, force=True)
    assert contents(out) == whole
    assert all(path.name.startswith("run-") for path in state.iterdir() if path.is_file())
