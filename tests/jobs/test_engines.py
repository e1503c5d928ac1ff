"""The engine `ray` on a cluster of two nodes; tests/jobs/test_run.py tests the engine `local`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from glc.jobs.engines import Engine
from glc.jobs.manifest import JobError
from glc.jobs.run import UnfinishedError, run
from tests.jobs.ray_cluster import busy_workers, two_nodes
from tests.jobs.stand_ins import NumberTask, code, contents, write_tar
from tests.jobs.test_run import SQUARES

RAY = Engine("ray", threads=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as found:
        yield found


@pytest.fixture
def task(tmp_path: Path, cluster: Any) -> NumberTask:
    return NumberTask(tmp_path, range(6))


def test_shards_are_those_of_the_local_engine(shards: Path, tmp_path: Path, cluster: Any) -> None:
    code(shards, tmp_path / "local")
    code(shards, tmp_path / "ray", engine=RAY)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_deferred_and_failed_items_are_reported_and_the_others_done(task: NumberTask) -> None:
    (task.folder / "defer-0").touch()
    (task.folder / "error-once-1").touch()
    (task.folder / "error-2").touch()
    with pytest.raises(UnfinishedError, match=r"2 of 6 .*(?=.*0: not enough memory)(?=.*2: No space left)"):
        run(task, RAY, quiet=True)
    assert sorted(task.recorded) == [SQUARES[1], *SQUARES[3:]]


def test_a_killed_worker_does_not_lose_its_item(task: NumberTask) -> None:
    (task.folder / "kill-once-3").touch()
    run(task, RAY, quiet=True)
    assert sorted(task.recorded) == SQUARES


def test_a_full_disk_ends_the_job_before_all_items_have_failed(tmp_path: Path, cluster: Any) -> None:
    task = NumberTask(tmp_path, range(200))
    for item in task.items:
        (tmp_path / f"error-{item}").touch()
    with pytest.raises(UnfinishedError, match=r"200 of 200 .*No space left on device"):
        run(task, RAY, quiet=True)


def test_an_interrupt_cancels_what_runs(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "in" / "0.tar", [("0.txt", b"quick")])
    write_tar(tmp_path / "in" / "1.tar", [(f"{i}.txt", b"slow") for i in range(1000)])
    monkeypatch.setattr("glc.jobs.manifest.Folder.add", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        code(tmp_path / "in", tmp_path / "out", engine=RAY)
    import time

    for _ in range(100):
        if not busy_workers(cluster):
            return
        time.sleep(0.1)
    pytest.fail("a worker still runs")


def test_a_missing_package_is_one_line(task: NumberTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(JobError, match=r"^--engine ray: .*pip install 'glc-codec\[ray\]'$"):
        run(task, RAY, quiet=True)
