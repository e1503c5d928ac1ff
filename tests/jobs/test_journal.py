"""What is kept of files that were being written when a process was killed."""

import hashlib
from pathlib import Path

import pytest

from glc.jobs.journal import Journal, Log

SOURCE = {"bytes": 100, "mtime_ns": 5}


@pytest.mark.parametrize("damage", [b'{"key": 3', b'{"ke\n{"key": 4}\n', b"[1]\n", b""], ids=str)
def test_a_log_is_truncated_before_its_first_corrupt_line(tmp_path: Path, damage: bytes) -> None:
    log = Log(tmp_path / "log", fsync=True)
    for key in range(3):
        log.append({"key": key})
    log.close()
    with (tmp_path / "log").open("ab") as file:
        file.write(damage)
    again = Log(tmp_path / "log")
    assert again.lines == [{"key": key} for key in range(3)]
    again.cut(1)
    again.append({"key": "new"})
    again.close()
    assert (tmp_path / "log").read_text() == '{"key": 0}\n{"key": "new"}\n'


def journal(folder: Path, source: dict[str, int] = SOURCE) -> Journal:
    return Journal(folder / "s.tar", folder / "s.part", folder / "s.journal", source)


def write(folder: Path, samples: int) -> Journal:
    found = journal(folder)
    for i in range(samples):
        found.add(f"{i}", 0, [(f"{i}.rev", bytes([i]) * 600)], bytes=600, pixels=1)
    found.close()
    return found


def test_samples_incomplete_in_shard_or_journal_are_dropped(tmp_path: Path) -> None:
    written = write(tmp_path, 4)
    ends = [line["end"] for line in written.samples]
    good_part, good_notes = written.part.read_bytes(), written.notes.read_bytes()

    def kept(part: bytes = good_part, notes: bytes = good_notes, source: dict[str, int] = SOURCE) -> int:
        written.part.write_bytes(part)
        written.notes.write_bytes(notes)
        again = journal(tmp_path, source)
        again.close()
        assert written.part.stat().st_size == (ends[len(again.samples) - 1] if again.samples else 0)
        return len(again.samples)

    assert kept() == 4
    assert kept(notes=good_notes[:-5]) == 3
    assert kept(part=good_part[: ends[1] + 100]) == 2
    # After a power cut, a file may have its size and not its content.
    assert kept(part=good_part[: ends[0]] + bytes(ends[3] - ends[0])) == 1
    assert kept(source={**SOURCE, "bytes": 1}) == 0
    assert kept(source={**SOURCE, "mtime_ns": 6}) == 0


def test_a_shard_is_published_with_the_hash_of_its_bytes(tmp_path: Path) -> None:
    write(tmp_path, 2)
    resumed = journal(tmp_path)
    size, sha256 = resumed.publish()
    resumed.close()
    content = resumed.target.read_bytes()
    assert (size, sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert not resumed.part.exists()
    # Killed before the record was written: the shard is recognised by its hash.
    again = journal(tmp_path)
    assert again.publish() == (size, sha256)
    assert len(again.samples) == 2
    again.close()
    # Another file in its place is not.
    resumed.target.write_bytes(bytes(size))
    other = journal(tmp_path)
    assert other.samples == []
    other.close()
