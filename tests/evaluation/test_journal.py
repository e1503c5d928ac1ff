"""The journal of an evaluation: what is left of it after a kill."""

from pathlib import Path

import pytest

from glc.evaluation.journal import Log


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
