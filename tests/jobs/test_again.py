"""The same command again, with and without --force: what is done again, and what another one may replace."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from glc.jobs.journal import Journal
from glc.jobs.manifest import CorpusError, Folder
from glc.jobs.run import UnfinishedError, run
from glc.jobs.tar_shards import find_shards
from glc.jobs.worker import Task
from tests.jobs.stand_ins import Reverser, code, contents, make_reverser, read_tar, write_tar


def test_a_folder_holds_shards_of_one_setting(shards: Path, tmp_path: Path) -> None:
    code(shards, tmp_path / "out")
    with pytest.raises(CorpusError, match=r"keep was true, is false.*--force"):
        code(shards, tmp_path / "out", keep=False)
    assert "0-0.json" in read_tar(tmp_path / "out" / "in-0.tar")
    code(shards, tmp_path / "out", keep=False, force=True)
    assert "0-0.json" not in read_tar(tmp_path / "out" / "in-0.tar")
    write_tar(tmp_path / "foreign" / "in-1.tar", [])
    with pytest.raises(CorpusError, match=r"in-1\.tar exists.*--force"):
        code(shards, tmp_path / "foreign")


def test_another_shard_of_the_same_size_is_another(shards: Path, tmp_path: Path) -> None:
    code(shards, tmp_path / "out")
    good = contents(tmp_path / "out")
    shard = shards / "in-0.tar"
    before = shard.stat()
    write_tar(shard, [("0-0.txt", b"repacked" * 1500)])
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert shard.stat().st_size == before.st_size  # tar fills up
    code(shards, tmp_path / "out")
    assert read_tar(tmp_path / "out" / "in-0.tar") == {"0-0.rev": b"dekcaper" * 1500}
    assert contents(tmp_path / "out")["in-1.tar"] == good["in-1.tar"]


@pytest.mark.parametrize("kind", ["json", "journal"])
def test_notes_without_a_time_go_by_size(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    add = Journal.add

    def full(self: Journal, key: str, *rest: Any, **result: Any) -> None:
        if key == "2-4":
            raise OSError(errno.ENOSPC, "No space left on device", str(self.part))
        add(self, key, *rest, **result)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        with pytest.raises(UnfinishedError):
            code(shards, tmp_path / "out")
    folder, found = Folder(tmp_path / "out"), find_shards([str(shards)])
    # Shard 0 is finished, shard 2 underway.
    path = folder.note(found[0 if kind == "json" else 2], kind)
    lines = path.read_text().splitlines() if kind == "journal" else [path.read_text()]
    note = json.loads(lines[0])
    del (note if kind == "json" else note["source"])["source_mtime_ns" if kind == "json" else "mtime_ns"]
    path.write_text("".join(line + "\n" for line in [json.dumps(note), *lines[1:]]))
    coded = []
    code_text = Reverser.code
    monkeypatch.setattr(
        Reverser, "code", lambda self, data, name: (coded.append(name), code_text(self, data, name))[1]
    )
    code(shards, tmp_path / "out")
    assert coded == ["2-4.txt"]


def test_force_does_again_what_was_finished_before_and_nothing_of_this_command(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded = []
    code_text = Reverser.code
    monkeypatch.setattr(
        Reverser, "code", lambda self, data, name: (coded.append(name), code_text(self, data, name))[1]
    )

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
    # One that was broken off goes on, as it says.
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", Mock(side_effect=OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(UnfinishedError, match="the same command goes on"):
            again(force=True)
    assert again(force=True) == 9  # all of the first shard is in its journal
    assert contents(tmp_path / "out") == whole


def test_settings_for_which_nothing_was_begun_are_replaced(shards: Path, tmp_path: Path) -> None:
    task = Task(find_shards([str(shards)]), tmp_path / "out", True)
    with pytest.raises(LookupError):
        run(task, {"command": "typo"}, Mock(side_effect=LookupError), quiet=True)
    assert code(shards, tmp_path / "out")["done"] == 13
    with pytest.raises(CorpusError, match="command was"):
        run(task, {"command": "typo"}, make_reverser, quiet=True)


def test_of_two_commands_that_begin_together_one_is_refused(shards: Path, tmp_path: Path) -> None:
    task = Task(find_shards([str(shards)]), tmp_path / "out", True)

    def slow_to_load(here: int) -> Reverser:
        code(shards, tmp_path / "out")
        return Reverser()

    with pytest.raises(CorpusError, match="another command"):
        run(task, {"command": "other"}, slow_to_load, quiet=True)
    # Likewise where the other one has begun and has no sample yet.
    for note in (tmp_path / "out" / ".glc").glob("in-*"):
        note.unlink()
    with pytest.raises(CorpusError, match="command was"):
        run(task, {"command": "other"}, make_reverser, quiet=True)
