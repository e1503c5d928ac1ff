"""How OpenMP threads wait: who decides, and that PyTorch's libgomp obeys."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import pytest

from glc.io import threads_policy
from glc.jobs.engines import _environment
from tests.programs import fresh

ALONE = "OpenMP's default (this process is alone)"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without other programs, an environment without settings, and torch not loaded."""
    monkeypatch.setattr(threads_policy, "others", lambda: 0.1)
    monkeypatch.delitem(sys.modules, "torch")
    with patch.dict(os.environ):
        for name in (*threads_policy.USER_SETTINGS, "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
            os.environ.pop(name, None)
        yield


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["compress", "--shards", "a", "--processes", "2"], "--processes=2"),
        (["compress", "--processes=3"], "--processes=3"),
        (["train", "-m", "hydra/launcher=local", "seed=1,2"], "hydra/launcher=local"),
        (["train", "-m", "hydra/launcher=submitit_local"], "hydra/launcher=submitit_local"),
    ],
)
def test_threads_sleep_where_several_of_our_processes_share_the_cores(words: list[str], reason: str) -> None:
    assert threads_policy.choose(words) == f"OMP_WAIT_POLICY=passive ({reason})"
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert threads_policy.description() == f"OMP_WAIT_POLICY=passive ({reason})"


@pytest.mark.parametrize(
    "words",
    [
        ["compress", "photo.png", "--processes", "1"],
        ["train", "-m", "hydra/launcher=slurm", "seed=1,2"],  # other machines
        ["compress", "processes"],
        ["--processes"],
    ],
)
def test_a_process_alone_keeps_the_default(words: Sequence[str]) -> None:
    assert threads_policy.choose(words) == ALONE
    assert "OMP_WAIT_POLICY" not in os.environ


def test_processes_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "data.num_workers=4"
    assert threads_policy.choose(["train"], [reason]) == f"OMP_WAIT_POLICY=passive ({reason})"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun
    assert "LOCAL_WORLD_SIZE=2" in threads_policy.choose(["train"])


@pytest.mark.parametrize("name", threads_policy.USER_SETTINGS)
def test_the_users_setting_wins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "active")
    before = dict(os.environ)
    assert threads_policy.choose(["--processes", "2"]) == f"{name}=active (from the environment)"
    with _environment(2):
        assert os.environ.get("OMP_WAIT_POLICY") == before.get("OMP_WAIT_POLICY")
    assert dict(os.environ) == before


def test_threads_sleep_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_policy, "others", lambda: 0.75)
    assert threads_policy.choose() == "OMP_WAIT_POLICY=passive (other programs use 75% of the cores)"


@pytest.mark.parametrize(("load", "threads"), [(0.5, "4"), (0.7, "2"), (0.99, "1"), (3.0, "1")])
def test_training_in_bfloat16_takes_the_free_cores_of_a_busy_machine(
    load: float, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads_policy, "others", lambda: load)
    assert f"OMP_NUM_THREADS={threads}, the free ones" in threads_policy.choose(bfloat16=True)
    assert os.environ["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert "OMP_NUM_THREADS" not in threads_policy.choose(bfloat16=True)
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(("load", "bfloat16"), [(0.4, True), (0.9, False)], ids=["idle", "float32"])
def test_other_training_keeps_its_threads(
    load: float, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_policy, "others", lambda: load)
    threads_policy.choose(bfloat16=bfloat16)
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    ("minute", "running", "share"),
    [(4.0, 5, 0.5), (4.0, 1, 0.0), (0.0, 5, 0.5), (6.0, 5, 0.5)],
    ids=["busy", "a program has just ended", "programs have just started", "this process does not count"],
)
def test_what_others_use(minute: float, running: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "getloadavg", lambda: (minute, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    text = f"{minute} 0 0 {running}/900 1234\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text if str(path) == "/proc/loadavg" else "")
    assert threads_policy.others() == share


@pytest.mark.parametrize(
    ("minute", "readings", "share"),
    [(0.0, [1, 9, 1, 1, 9], 0.0), (4.0, [1, 2, 1, 1, 1], 0.1)],
    ids=["on an idle machine", "after a busy minute"],
)
def test_what_runs_for_a_moment_hardly_counts(
    minute: float, readings: list[int], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "getloadavg", lambda: (minute, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    samples = iter(readings)
    monkeypatch.setattr(threads_policy, "_running", lambda: next(samples))
    assert threads_policy.others() == pytest.approx(share)


def test_workers_of_a_job_inherit_the_policy_and_the_caller_keeps_its_own() -> None:
    before = dict(os.environ)
    with _environment(None):
        assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert dict(os.environ) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp is PyTorch's OpenMP on Linux")
@pytest.mark.parametrize(("processes", "spins"), [(1, "300000"), (2, "0")])
def test_libgomp_reads_the_choice_of_the_glc_command(processes: int, spins: str) -> None:
    """Where `glc` loads torch: libgomp then prints its settings."""
    program = (
        "import sys; from glc.io import threads_policy; threads_policy.others = lambda: 0.0\n"
        f"sys.argv = ['glc', 'compress', '--shards', 'none.tar', '-o', 'out', '--processes', '{processes}']\n"
        "from glc.cli import main\n"
        "try: main(standalone_mode=False)\n"
        "except Exception: import torch"
    )
    done = fresh(["-c", program], environment={"OMP_DISPLAY_ENV": "verbose"})
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr, done.stderr
