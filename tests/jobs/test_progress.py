"""How far a job is, read from the state that it leaves."""

from pathlib import Path

from glc.jobs.manifest import Folder
from glc.jobs.progress import ShardProgress
from glc.jobs.tar_shards import find_shards
from tests.jobs.stand_ins import code


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
