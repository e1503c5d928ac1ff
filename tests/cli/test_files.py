"""Files are read and written while the device computes; results do not change."""

import importlib
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from glc.cli import files
from glc.cli.files import Job, outcomes
from glc.cli.notes import say
from glc.codec.runtime import resources
from tests.cli.conftest import Glc, image, tree


def jobs(count: int) -> list[Job]:
    return [Job(Path(f"{i}.in"), Path(f"{i}.out")) for i in range(count)]


def test_reading_and_writing_overlap_with_coding() -> None:
    read: set[str] = set()
    may_write, written = threading.Event(), []

    def code(job: Job, name: str) -> tuple[str, str]:
        if name == "1.in":
            deadline = time.monotonic() + 10
            while "3.in" not in read and time.monotonic() < deadline:
                time.sleep(0.001)
            assert "3.in" in read, "two ahead"
            assert not written, "coding does not wait for the first file's writing"
            may_write.set()
        assert threading.current_thread() is threading.main_thread()
        assert int(name[0]) + 3 >= len(read) - 1, "no further read-ahead"
        return name, f"coded {name}"

    def write(job: Job, name: str) -> None:
        assert may_write.wait(10)
        written.append(name)

    def take(job: Job) -> str:
        read.add(job.name)
        return job.name

    found = list(outcomes(jobs(9), take, code, write, threads=2))
    assert [outcome for _, outcome in found] == [f"coded {i}.in" for i in range(9)]
    assert sorted(written) == [f"{i}.in" for i in range(9)]


@pytest.mark.parametrize(("threads", "cores"), [(0, 1), (3, 1), (0, 3)])
def test_an_error_of_any_step_is_reported_for_its_file(threads: int, cores: int) -> None:
    def fail_at(number: int, job: Job) -> str:
        if job.name == f"{number}.in":
            raise ValueError(f"step {number}")
        return job.name

    def write(job: Job, name: str) -> None:
        fail_at(2, job)

    def read(job: Job) -> str:
        return fail_at(0, job)

    done = outcomes(jobs(4), read, lambda job, name: (fail_at(1, job), name), write, threads, cores)
    found = [(job.name, str(outcome)) for job, outcome in done]
    assert found == [("0.in", "step 0"), ("1.in", "step 1"), ("2.in", "step 2"), ("3.in", "3.in")]

    def interrupt(job: Job, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(outcomes(jobs(4), read, lambda job, name: (name, name), interrupt, threads, cores))


def test_small_files_are_processed_side_by_side_and_large_ones_alone() -> None:
    both = threading.Barrier(2)
    running: list[str] = []
    seen: dict[str, tuple[int, int]] = {}

    def code(job: Job, name: str) -> tuple[str, str]:
        running.append(name)
        if name in ("0.in", "1.in"):
            both.wait(10)  # raises if the two are not there at the same time
        seen[name] = len(running), torch.get_num_threads()
        time.sleep(0.02)
        running.remove(name)
        say(f"about {name}", sys.stdout)
        return name, f"coded {name}"

    def size(name: str) -> int:
        return files.SMALL_PIXELS + (name == "2.in")

    found = outcomes(jobs(6), lambda job: job.name, code, lambda job, name: None, 0, 2, size)
    assert [outcome for _, outcome in found] == [f"coded {i}.in" for i in range(6)]
    assert seen.pop("2.in") == (1, 2)
    assert {threads for _, threads in seen.values()} == {1}


def test_lines_about_a_file_come_before_its_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    def code(job: Job, name: str) -> tuple[str, str]:
        time.sleep(0.02 if name == "0.in" else 0)
        say(f"about {name}", sys.stdout)
        return name, name

    for job, _ in outcomes(jobs(4), lambda job: job.name, code, lambda job, name: None, 0, 2):
        print(f"done {job.name}")
    expected = [line for i in range(4) for line in (f"about {i}.in", f"done {i}.in")]
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(("threads", "cores"), [(2, 1), (0, 2)])
def test_results_are_the_same_with_threads(
    glc: Glc, monkeypatch: pytest.MonkeyPatch, threads: int, cores: int
) -> None:
    for i in range(4):
        image(f"in/{i}.png", seed=i)
    Path("in/2.png").write_bytes(b"no image")
    # The command hides the module as an attribute of the package.
    module = importlib.import_module("glc.cli.compress")
    monkeypatch.setattr(module, "cores_for", lambda device, limited: 1)
    expected = [glc("compress", "in", "-o", "out"), glc("decompress", "out", "-o", "back")]
    monkeypatch.setattr(module, "threads_for", lambda device: threads)
    monkeypatch.setattr(module, "cores_for", lambda device, limited: cores)
    found = [glc("compress", "in", "-o", "out2"), glc("decompress", "out2", "-o", "back2")]
    for one, other in zip(expected, found, strict=True):
        assert one.stdout.replace("out/", "out2/").replace("back/", "back2/") == other.stdout
        assert (one.stderr, one.exit_code) == (other.stderr, other.exit_code)
    for first, second in (("out", "out2"), ("back", "back2")):
        files = [
            {name: Path(folder, name).read_bytes() for name in tree(folder)} for folder in (first, second)
        ]
        assert files[0] == files[1]


def test_images_share_the_cores_of_a_cpu_as_far_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    for memory, count in ((None, 6), (64e9, 6), (7e9, 3), (1e9, 1)):
        monkeypatch.setattr(resources, "available_memory", lambda memory=memory: memory)
        assert files.cores_for("cpu", limited=False) == count
    assert files.cores_for("cpu", limited=True) == files.cores_for("cuda", limited=False) == 1


def test_a_cpu_gets_no_threads() -> None:
    assert files.threads_for("cpu") == 0 < files.threads_for("cuda") <= files.MAX_THREADS
