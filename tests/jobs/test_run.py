"""The runner: every item once, whatever happens to the processes, and a resume that does what is left."""

import multiprocessing
from pathlib import Path
from unittest.mock import Mock

import pytest

from glc.jobs import run as runner
from glc.jobs.manifest import JobError
from glc.jobs.run import UnfinishedError, dist_info, run
from tests.jobs.stand_ins import NumberTask, NumberWorker

SQUARES = [(item, str(item**2)) for item in range(6)]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NumberTask:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runner, "_PAUSE", 0.01)
    return NumberTask(tmp_path, range(6))


def starts(task: NumberTask) -> list[str]:
    """The local ranks of the processes that began, in order."""
    return sorted(path.name.split("-")[1] for path in task.folder.glob("start-*"))


@pytest.mark.parametrize("processes", [1, 2])
def test_every_item_is_done_once_and_its_outcome_recorded(task: NumberTask, processes: int) -> None:
    (task.folder / "2").write_text("4")  # by an earlier run
    run(task, processes=processes, quiet=True)
    assert sorted(task.recorded) == [entry for entry in SQUARES if entry[0] != 2]
    assert all(task.outcome(item) == square for item, square in SQUARES)
    began = starts(task)
    assert set(began) <= {"0", "1"}  # on a busy machine one process may do everything
    assert len(began) <= processes
    run(task, quiet=True)  # nothing is left: no worker is made
    assert starts(task) == began
    assert not multiprocessing.active_children()


def test_a_killed_process_is_replaced_and_its_item_tried_again(task: NumberTask) -> None:
    (task.folder / "kill-once-1").touch()
    run(task, processes=2, quiet=True)
    assert sorted(task.recorded) == SQUARES


def test_an_item_that_kills_every_process_is_given_up_and_the_others_are_done(task: NumberTask) -> None:
    (task.folder / "kill-1").touch()
    reason = r"a worker process was killed by SIGKILL, possibly out of memory"
    message = rf"1 of 6 numbers are not finished \({reason}\); run"
    with pytest.raises(UnfinishedError, match=message):
        run(task, processes=2, quiet=True)
    assert sorted(task.recorded) == [entry for entry in SQUARES if entry[0] != 1]
    (task.folder / "kill-1").unlink()
    run(task, quiet=True)
    assert task.recorded[-1] == SQUARES[1]


def test_others_take_over_from_a_process_that_reports_an_error(task: NumberTask) -> None:
    (task.folder / "error-once-1").touch()
    run(task, processes=2, quiet=True)
    assert sorted(task.recorded) == SQUARES
    assert len(starts(task)) <= 2  # one that reports an error is not replaced


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_every_process_is_reported_with_its_file(task: NumberTask, processes: int) -> None:
    for item in task.items:
        (task.folder / f"error-{item}").touch()
    with pytest.raises(UnfinishedError, match=r"6 of 6 .*/0: No space left on device.*run the same command"):
        run(task, processes=processes, quiet=True)
    assert task.recorded == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_deferred_item_does_not_stop_the_others(task: NumberTask, processes: int) -> None:
    (task.folder / "defer-0").touch()
    with pytest.raises(UnfinishedError, match=r"1 of 6 .*0: not enough memory"):
        run(task, processes=processes, quiet=True)
    assert sorted(task.recorded) == SQUARES[1:]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_item_locked_by_another_command_is_tried_again(task: NumberTask, processes: int) -> None:
    (task.folder / "held-once-0").touch()
    (task.folder / "held-once-5").touch()
    run(task, processes=processes, quiet=True)
    assert sorted(task.recorded) == SQUARES
    assert processes > 1 or task.recorded[-2:] == [SQUARES[0], SQUARES[5]]


def test_ranks_start_at_different_items(task: NumberTask, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(key, value)
    run(task, quiet=True)
    assert [item for item, _ in task.recorded] == [2, 3, 4, 5, 0, 1]
    assert starts(task) == ["1"]


def test_an_interrupted_run_ends_its_processes(task: NumberTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "record", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(task, processes=2, quiet=True)
    assert not multiprocessing.active_children()


def test_an_error_in_make_worker_is_raised(task: NumberTask, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(NumberWorker, "__init__", Mock(side_effect=ValueError("no such weights")))
        with pytest.raises(ValueError, match="no such weights"):
            run(task, quiet=True)
    run(task, quiet=True)
    assert sorted(task.recorded) == SQUARES


def test_rank_and_world_size_come_from_torchrun_or_slurm(
    task: NumberTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dist_info() == (0, 1)
    for (rank, world_size), found in {
        ("SLURM_PROCID", "SLURM_NTASKS"): (3, 8),
        ("RANK", "WORLD_SIZE"): (1, 2),
    }.items():
        monkeypatch.setenv(rank, str(found[0]))
        monkeypatch.setenv(world_size, str(found[1]))
        assert dist_info() == found
    for rank in ("2", "-1", "one"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(JobError, match=f"RANK={rank} is out of range for WORLD_SIZE=2"):
            dist_info()
