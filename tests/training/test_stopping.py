"""Signals and the time limit end a run after a complete step, with a checkpoint that continues exactly."""

import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from glc.launch.train import main
from glc.launch.train import run as entry
from glc.training.stopping import (
    SAME,
    SIGNALS,
    SWEEP,
    Stop,
    StopAfterStep,
    Stopped,
    StopSignals,
    job_of_sweep,
)
from tests.programs import TRAIN, Started
from tests.short_runs import QUIET, arguments, checkpoint, compose, figures, live_weights, run, settings


class SendSignal(L.Callback):
    """Send this process a signal at the start of a batch or validation batch.

    Args:
        number: of the signal.
        batch: index over all epochs; None for the first validation batch.
    """

    def __init__(self, number: int, batch: int | None = 0) -> None:
        self.number, self.batch = number, batch

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Send it during training."""
        if trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        """Send it during validation."""
        if self.batch is None:
            os.kill(os.getpid(), self.number)


def sending(number: int, batch: int | None) -> dict[str, Any]:
    return {
        "+callbacks.send._target_": f"{__name__}.SendSignal",
        "+callbacks.send.number": int(number),
        "+callbacks.send.batch": "null" if batch is None else batch,
    }


def exit_code(values: dict[str, Any]) -> int:
    with pytest.raises(SystemExit) as caught:
        entry(compose(values))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def options(images: Path, runs: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Four steps of stage I, two per epoch."""
    return {**settings(images, runs, name, "vqvae", 4), "data.epoch_batches": 2, **changes}


@pytest.fixture(scope="module")
def complete(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = run(options(images, tmp_path_factory.mktemp("complete"), "complete"))
    return live_weights(checkpoint(folder))


# In the middle of an epoch, at its end, and in the validation after it, where the EMA replaces the weights.
@pytest.mark.parametrize(
    ("number", "batch", "code", "step"),
    [
        (signal.SIGTERM, 0, 143, 1),
        (signal.SIGINT, 1, 130, 2),
        (signal.SIGTERM, None, 143, 2),
        (signal.SIGTERM, 3, 143, 4),
    ],
)
def test_a_signal_stops_after_the_running_step(
    images: Path,
    tmp_path: Path,
    complete: dict[str, torch.Tensor],
    caplog: pytest.LogCaptureFixture,
    number: int,
    batch: int | None,
    code: int,
    step: int,
) -> None:
    values = options(images, tmp_path, "stopped")
    before = signal.getsignal(number)
    assert exit_code({**values, **sending(number, batch)}) == code
    assert signal.getsignal(number) is before
    folder = tmp_path / "stopped" / "vqvae"
    assert checkpoint(folder)["global_step"] == step
    assert [row["step"] for row in figures(folder) if "train/loss" in row] == list(range(step))
    (line,) = [text for text in caplog.messages if text.startswith("stopped by")]
    name = signal.Signals(number).name
    assert line.startswith(f"stopped by {name} after step {step}; saved {folder}/checkpoints/last.ckpt; ")
    assert [row["step"] for row in figures(folder) if "val/loss" in row] == ([1] if step > 2 else [])
    run({**values, "resume": "last"})
    if step == 2:  # the validation that was skipped
        assert [row["step"] for row in figures(folder, 1) if "val/loss" in row] == [1, 3]
    resumed = checkpoint(folder)
    assert resumed["global_step"] == 4
    assert all(torch.equal(value, complete[key]) for key, value in live_weights(resumed).items())


def test_all_passes_of_the_running_step_are_completed(images: Path, tmp_path: Path) -> None:
    values = options(images, tmp_path, "passes", **{"stage.accumulate": 2, "data.epoch_batches": 4})
    assert exit_code({**values, **sending(signal.SIGTERM, 2)}) == 143
    folder = tmp_path / "passes" / "vqvae"
    assert checkpoint(folder)["global_step"] == 2
    assert [row["step"] for row in figures(folder) if "train/loss" in row] == [0, 1, 2, 3]


def test_the_time_limit_has_its_own_exit_code(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = options(images, tmp_path, "limited", max_minutes=0, resume="auto")
    assert exit_code(values) == 75
    assert "stopped by max_minutes=0 after step 1; saved " in caplog.text
    assert [exit_code(values), exit_code(values)] == [75, 75]
    assert entry(compose(values)) is not None  # the last step: the run is complete
    assert checkpoint(tmp_path / "limited" / "vqvae")["global_step"] == 4


def test_a_signal_before_the_first_step_saves_nothing(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = options(images, tmp_path, "early", validate_first="true")
    assert exit_code({**values, **sending(signal.SIGTERM, None)}) == 143
    assert "stopped by SIGTERM at step 0; nothing was saved" in caplog.text
    assert not list((tmp_path / "early").rglob("*.ckpt"))


def printed_command(caplog: pytest.LogCaptureFixture) -> list[str]:
    (line,) = [line for line in caplog.messages if line.startswith("stopped by")]
    return shlex.split(line.partition("continue with: ")[2])


def test_a_sweep_stops_as_a_whole(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = {**options(images, tmp_path, "sweep"), "seed": "0,1", **sending(signal.SIGTERM, 0)}
    with pytest.raises(SystemExit) as caught:
        main(["-m", *arguments({**values, "resume": "auto"})])
    assert caught.value.code == 143
    assert [path.name for path in (tmp_path / "sweep" / "vqvae").glob("seed*")] == ["seed-0"]
    assert SWEEP not in os.environ
    words = printed_command(caplog)
    assert words[:3] == ["glc", "train", "-m"]
    assert words[-1] == "resume=auto"
    assert "seed=0,1" in words


def test_the_printed_command_resumes(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = options(images, tmp_path, "a run", overwrite="true", max_minutes=0)
    with pytest.raises(SystemExit):
        main(arguments(values))
    words = printed_command(caplog)
    assert words == ["glc", "train", *(w for w in arguments(values) if w != "overwrite=true"), "resume=last"]
    with pytest.raises(SystemExit):
        main(words[2:])
    assert checkpoint(tmp_path / "a run" / "vqvae")["global_step"] == 2


class Wait(L.Callback):
    """Write a file and wait at the start of the third batch."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Wait."""
        if trainer.global_step == 2:
            self.path.touch()
            time.sleep(60)


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_second_signal_ends_the_process_at_once(images: Path, tmp_path: Path) -> None:
    values = {
        **options(images, tmp_path, "twice"),
        "+callbacks.wait._target_": f"{__name__}.Wait",
        "+callbacks.wait.path": tmp_path / "waiting",
        "callbacks.progress": "null",
    }
    process = Started([*TRAIN, *arguments(values)], environment=QUIET)
    until(lambda: (tmp_path / "waiting").exists() or not process.running())
    assert process.process.pid is not None
    for _ in range(3):  # the second one comes too early and counts as the first
        assert process.running()
        os.kill(process.process.pid, signal.SIGTERM)
        time.sleep(SAME * 0.6)
    done = process.finish(20)
    assert done.returncode == -signal.SIGTERM
    assert done.stderr.count("SIGTERM: stopping after this step; another SIGTERM ends at once") == 1
    folder = tmp_path / "twice" / "vqvae"
    assert checkpoint(folder)["global_step"] == 2
    run({**options(images, tmp_path, "twice"), "resume": "last"})
    assert checkpoint(folder)["global_step"] == 4


def test_all_processes_stop_at_the_same_step_for_the_same_reason() -> None:
    """The signal of another process counts; a signal comes before the time limit."""
    others = iter([0, 1 + signal.SIGINT])
    strategy = SimpleNamespace(
        launcher=None,
        root_device=torch.device("cpu"),
        reduce=lambda value, reduce_op: torch.tensor(max(int(value), next(others))),
    )
    loop = SimpleNamespace(min_epochs=1, epoch_loop=SimpleNamespace(min_steps=1))
    trainer: Any = SimpleNamespace(
        **{"current_epoch": 0, "max_epochs": -1},
        **{"global_step": 3, "max_steps": 9, "world_size": 2, "strategy": strategy, "fit_loop": loop},
        **{"should_stop": False, "is_last_batch": True},
    )
    callback = StopAfterStep(minutes=None)
    module: Any = None
    callback.on_fit_start(trainer, module)
    callback.on_train_start(trainer, module)
    steps = []
    while not trainer.should_stop:
        for last in (False, True):  # two passes per step; only the second asks
            trainer.global_step += last
            callback.on_train_batch_end(trainer, module, None, None, 0)
        steps.append(trainer.global_step)
    SIGNALS.training = False
    assert steps == [4, 5]
    assert callback.stop == Stop("SIGINT", 130)
    with pytest.raises(Stopped):
        callback.on_validation_epoch_start(trainer, module)
    assert loop.min_epochs is None


def test_handlers_of_others_are_called_after_the_checkpoint(images: Path, tmp_path: Path) -> None:
    """As submitit's, which requeues the job and exits."""
    called = []
    last = tmp_path / "requeued" / "vqvae" / "checkpoints" / "last.ckpt"
    previous = [
        signal.signal(number, lambda got, _: called.append((got, last.is_file())))
        for number in (signal.SIGUSR2, signal.SIGTERM)
    ]
    try:
        changes = {**options(images, tmp_path, "requeued"), **sending(signal.SIGUSR2, 0)}
        assert exit_code(changes) == 128 + signal.SIGUSR2
        with StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)  # stays with its handler
    finally:
        signal.signal(signal.SIGUSR2, previous[0])
        signal.signal(signal.SIGTERM, previous[1])
    assert called == [(signal.SIGUSR2, True), (signal.SIGTERM, True)]


def test_a_sweep_waits_until_jobs_in_other_processes_have_stopped(tmp_path: Path) -> None:
    job = """
import os, pathlib, sys, time
from glc.training.stopping import job_of_sweep, sweep_folder
with job_of_sweep():
    pathlib.Path(sys.argv[1], "started").touch()
    while not (sweep_folder() / "stop").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    pathlib.Path(sys.argv[1], "saved").touch()
"""
    signals = StopSignals()

    def run_job() -> None:
        with signals.sweep():
            process = Started(["-c", job, tmp_path])
            until((tmp_path / "started").exists)
            os.kill(os.getpid(), signal.SIGTERM)
            assert process.finish(60).returncode == 0
            assert (tmp_path / "saved").exists()
            time.sleep(10)

    with pytest.raises(Stopped) as caught:
        run_job()
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_jobs_of_a_stopped_sweep_do_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stop").touch()
    monkeypatch.setenv(SWEEP, f"1:{tmp_path}")
    with pytest.raises(Stopped), job_of_sweep():
        pytest.fail("started")
    assert [path.name for path in tmp_path.iterdir()] == ["stop"]
