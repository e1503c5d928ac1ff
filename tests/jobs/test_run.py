"""Collections: every sample once, whatever happens in between, and a manifest that adds up."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glc.errors import MemoryLimitError
from glc.io.locks import claim
from glc.jobs import worker as corpus_work
from glc.jobs.journal import Journal
from glc.jobs.manifest import CorpusError, Folder
from glc.jobs.progress import Watch
from glc.jobs.run import UnfinishedError, run, world
from glc.jobs.tar_shards import find_shards
from glc.jobs.worker import Task
from tests.jobs.stand_ins import SETTINGS, Reverser, code, contents, make_reverser, read_tar, write_tar

ROOT = Path(__file__).parents[2]


def test_every_sample_once_and_a_manifest_that_adds_up(shards: Path, tmp_path: Path) -> None:
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


def test_other_files_go_along_only_when_asked_for(shards: Path, tmp_path: Path) -> None:
    code(shards, tmp_path / "out", keep=False)
    assert set(read_tar(tmp_path / "out" / "in-0.tar")) == {f"0-{i}.rev" for i in range(5)}


def test_what_a_kill_leaves_is_gone_on_from(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code(shards, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    add, finish, replace = Journal.add, Journal.finish, os.replace
    counter = {"left": 0, "coded": 0}

    class Killed(BaseException):
        pass

    def step(*_: Any) -> None:
        counter["left"] -= 1
        if counter["left"] < 0:
            raise Killed

    def coded(self: Reverser, data: bytes, name: str) -> Any:
        counter["coded"] += 1
        return code_text(self, data, name)

    code_text = Reverser.code
    monkeypatch.setattr(Reverser, "code", coded)
    # A kill before every write in turn, and after it.
    monkeypatch.setattr(Journal, "add", lambda *a, **k: (step(), add(*a, **k), step())[1])
    monkeypatch.setattr(Journal, "finish", lambda self: (step(), finish(self), step())[1])
    monkeypatch.setattr(corpus_work.os, "replace", lambda *a: (step(), replace(*a), step()))
    for survived in range(42):
        counter["left"] = survived % 7
        try:
            code(shards, tmp_path / "out")
            break
        except Killed:
            pass
    monkeypatch.undo()
    code(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    # One sample for each kill at most was done again: the journal kept the others.
    assert counter["coded"] < 14 + 42


def test_a_torn_journal_costs_what_is_torn(shards: Path, tmp_path: Path) -> None:
    code(shards, tmp_path / "whole")
    folder, (shard, *_) = Folder(tmp_path / "out"), find_shards([str(shards)])
    folder.notes.mkdir(parents=True)
    part, notes = folder.note(shard, "part"), folder.note(shard, "journal")
    journal = Journal(part, notes, {"bytes": shard.bytes()})
    for i in range(4):
        journal.add(f"0-{i}", 0, [(f"0-{i}.rev", b"x" * 600)], bytes=600, pixels=1)
    journal.close()
    sizes = [line["end"] for line in journal.lines]
    good_part, good_notes = part.read_bytes(), notes.read_bytes()

    def kept(source: int | None = shard.bytes()) -> int:
        again = Journal(part, notes, {"bytes": source})
        again.close()
        assert part.stat().st_size == again.size
        return len(again.lines)

    assert kept() == 4
    notes.write_bytes(good_notes[:-5])
    assert kept() == 3
    part.write_bytes(good_part[: sizes[1] + 100])
    notes.write_bytes(good_notes)
    assert kept() == 2
    # After a power cut, a file may have its size and not its content.
    part.write_bytes(good_part[: sizes[0]] + bytes(sizes[3] - sizes[0]))
    notes.write_bytes(good_notes)
    assert kept() == 1
    part.write_bytes(good_part)
    notes.write_bytes(good_notes)
    assert kept(source=1) == 0


def test_one_process_per_shard(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import sys; from pathlib import Path; from glc.io.locks import claim\n"
        "with claim(Path(sys.argv[1])) as got: print(got)"
    )

    def other() -> str:
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
        return done.stdout.strip() or done.stderr

    with claim(path) as mine:
        assert mine
        assert other() == "False"
    assert not path.exists()
    path.touch()  # a killed process leaves the file, but not the lock
    with claim(path) as mine:
        assert mine


def test_processes_share_the_work_and_outlive_one_another(
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


def test_places_of_several_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert world() == (0, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert world() == (3, 8)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert world() == (1, 2)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(CorpusError, match="RANK=2"):
        world()


def test_missing_and_broken_shards_are_told_of_and_mended(shards: Path, tmp_path: Path) -> None:
    code(shards, tmp_path / "whole")
    good = {path.name: path.read_bytes() for path in shards.iterdir()}
    # Of a sample before the cut nobody knows whether it is whole.
    (shards / "in-0.tar").write_bytes(good["in-0.tar"][: 2 * 2048 + 100])
    (shards / "in-1.tar").write_bytes(b"nothing")
    (shards / "in-2.tar").unlink()
    task = Task(find_shards([str(shards / "in-{0..2}.tar")]), tmp_path / "out", True)
    totals = run(task, SETTINGS, make_reverser, quiet=True)
    assert (totals["broken_shards"], totals["done"]) == (3, 1)
    assert set(contents(tmp_path / "out")) == {"in-0.tar", "manifest.json", "failures.jsonl"}
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [f["key"] for f in failures] == [None] * 3
    assert "no such file" in failures[2]["error"]
    # Mended, the same command does what is missing.
    for name, content in good.items():
        (shards / name).write_bytes(content)
    code(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_stops_and_loses_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code(shards, tmp_path / "whole")
    add = Journal.add

    def full(self: Journal, key: str, *rest: Any, **result: Any) -> None:
        if key == "1-3":
            self._tar.write(b"half of")  # what a full disk takes before it says so
            self._tar.flush()
            raise OSError(errno.ENOSPC, "No space left on device", str(self.part))
        add(self, key, *rest, **result)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        with pytest.raises(UnfinishedError, match=r"2 of 3 shards.*No space left.*same command"):
            code(shards, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"in-0.tar"}
    code(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("shortage", [MemoryLimitError("9 GB: allow more with --memory"), MemoryError()])
def test_what_lacks_memory_waits_for_more_and_holds_up_no_other_shard(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortage: Exception
) -> None:
    code(shards, tmp_path / "whole")
    reverse = Reverser.code

    def short(self: Reverser, data: bytes, name: str) -> Any:
        if data == b"text 0 3":
            raise shortage
        return reverse(self, data, name)

    with monkeypatch.context() as patch:
        patch.setattr(Reverser, "code", short)
        with pytest.raises(UnfinishedError, match=r"1 of 3 shards.*0-3: .*[mM]emory"):
            code(shards, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"in-1.tar", "in-2.tar"}
    code(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_how_far_it_is_can_be_read_from_outside(shards: Path, tmp_path: Path) -> None:
    code(shards, tmp_path / "out")
    found = find_shards([str(shards)])
    folder = Folder(tmp_path / "out")
    watch = Watch(folder, found)
    assert watch.look() == (watch.total, 3)
    folder.note(found[1], "json").unlink()
    folder.note(found[1], "journal").write_text('{"source": {}}\n{"read": 3000}\n{"read": 40')
    watch = Watch(folder, found)
    rest = sum(shard.bytes() or 0 for shard in (found[0], found[2]))
    assert watch.look() == (rest + 3000, 2)
