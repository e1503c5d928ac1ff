"""The runner with processes of this machine: every item once, and a resume that does what is left."""

import multiprocessing
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import Mock

import pytest

from glc.jobs.engines import Engine
from glc.jobs.manifest import JobError
from glc.jobs.run import UnfinishedError, run
from tests.jobs.stand_ins import NumberTask, NumberWorker
from tests.programs import fork_server

SQUARES = [(item, str(item**2)) for item in range(6)]
TWO = Engine(processes=2)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NumberTask:
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    server = fork_server()  # with the imports done; one test starts new interpreters as commands do
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: server)
    return NumberTask(tmp_path, range(6))


@pytest.fixture
def others() -> set[BaseProcess]:
    """Processes that tests before have left, such as the workers of a loader."""
    return set(multiprocessing.active_children())


def starts(task: NumberTask) -> list[str]:
    """The local ranks of the processes that began, in order."""
    return sorted(path.name.split("-")[1] for path in task.folder.glob("start-*"))


@pytest.mark.parametrize("processes", [1, 2])
def test_every_item_is_done_once_and_its_outcome_recorded(
    task: NumberTask, processes: int, others: set[BaseProcess]
) -> None:
    (task.folder / "2").write_text("4")  # by an earlier run
    run(task, Engine(processes=processes), quiet=True)
    assert sorted(task.recorded) == [entry for entry in SQUARES if entry[0] != 2]
    assert all(task.outcome(item) == square for item, square in SQUARES)
    began = starts(task)
    assert set(began) <= {"0", "1"}  # on a busy machine one process may do everything
    assert len(began) <= processes
    run(task, Engine(), quiet=True)  # nothing is left: no worker is made
    assert starts(task) == began
    assert set(multiprocessing.active_children()) <= others


def test_a_killed_process_is_replaced_and_its_item_tried_again(
    task: NumberTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # new interpreters
    (task.folder / "kill-once-1").touch()
    run(task, TWO, quiet=True)
    assert sorted(task.recorded) == SQUARES


def test_an_item_that_kills_every_process_is_given_up_and_the_others_are_done(task: NumberTask) -> None:
    (task.folder / "kill-1").touch()
    message = r"1 of 6 numbers are not finished \(a worker process was killed, possibly out of memory\); run"
    with pytest.raises(UnfinishedError, match=message):
        run(task, TWO, quiet=True)
    assert sorted(task.recorded) == [entry for entry in SQUARES if entry[0] != 1]
    (task.folder / "kill-1").unlink()
    run(task, Engine(), quiet=True)
    assert task.recorded[-1] == SQUARES[1]


def test_others_take_over_from_a_process_that_reports_an_error(task: NumberTask) -> None:
    (task.folder / "error-once-5").touch()  # the last item: the other process may have nothing left to do
    run(task, TWO, quiet=True)
    assert sorted(task.recorded) == SQUARES
    assert len(starts(task)) <= 2  # one that reports an error is not replaced


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_every_process_is_reported_with_its_file(task: NumberTask, processes: int) -> None:
    for item in task.items:
        (task.folder / f"error-{item}").touch()
    with pytest.raises(UnfinishedError, match=r"6 of 6 .*/0: No space left on device.*run the same command"):
        run(task, Engine(processes=processes), quiet=True)
    assert task.recorded == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_deferred_item_does_not_stop_the_others(task: NumberTask, processes: int) -> None:
    (task.folder / "defer-0").touch()
    with pytest.raises(UnfinishedError, match=r"1 of 6 .*0: not enough memory"):
        run(task, Engine(processes=processes), quiet=True)
    assert sorted(task.recorded) == SQUARES[1:]


def test_parts_have_every_item_once(task: NumberTask) -> None:
    run(task, Engine(part=(1, 4)), quiet=True)
    assert task.recorded == [SQUARES[1], SQUARES[5]]
    for part in (0, 2, 3):
        run(task, Engine(part=(part, 4)), quiet=True)
    assert sorted(task.recorded) == SQUARES


def test_tasks_of_slurm_that_would_all_do_the_same_are_refused(
    task: NumberTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "64")
    with pytest.raises(JobError, match=r"SLURM_STEP_NUM_TASKS=64: each .*--part I/N"):
        run(task, Engine(), quiet=True)
    assert task.recorded == []
    run(task, Engine(part=(0, 64)), quiet=True)
    assert task.recorded == [SQUARES[0]]


def test_an_interrupted_run_ends_its_processes(
    task: NumberTask, monkeypatch: pytest.MonkeyPatch, others: set[BaseProcess]
) -> None:
    monkeypatch.setattr(task, "record", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(task, TWO, quiet=True)
    assert set(multiprocessing.active_children()) <= others


def test_an_error_in_make_worker_is_raised(task: NumberTask, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(NumberWorker, "__init__", Mock(side_effect=ValueError("no such weights")))
        with pytest.raises(ValueError, match="no such weights"):
            run(task, Engine(), quiet=True)
    run(task, Engine(), quiet=True)
    assert sorted(task.recorded) == SQUARES


def test_progress_within_an_item_is_reported(task: NumberTask, capsys: pytest.CaptureFixture[str]) -> None:
    from glc.jobs.engines import Progress

    progress, seen = Progress(), []
    for _ in Engine().run(task.make_worker, [1, 2], progress):
        seen.append(progress.total())
    assert seen == [1, 1]
