"""File locks between processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from glc.io import locks
from glc.io.locks import lock


def test_locks_are_exclusive_and_released_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import sys; from pathlib import Path; from glc.io.locks import lock\n"
        "with lock(Path(sys.argv[1])) as held: print(held)"
    )

    def other() -> str:
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
        return done.stdout.strip() or done.stderr

    with lock(path) as held:
        assert held
        assert other() == "False"
    assert not path.exists()
    path.touch()  # a killed process leaves the file, but not the lock
    with lock(path) as held:
        assert held


def test_nobody_is_kept_out_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    with lock(tmp_path / "lock") as held:
        assert held
