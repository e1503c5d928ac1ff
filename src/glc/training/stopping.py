"""Stop a run early by a signal or a time limit, after a complete step, with a checkpoint of that step.

`SIGNALS` records signals. The callback `StopAfterStep` asks after each step whether any process of the run
has received one, so that all stop at the same step.
"""

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import lightning as L
import torch

from glc.training.checkpoints import is_first_process

TIME_LIMIT_CODE = 75
"""Exit code of a run that `max_minutes` stopped (EX_TEMPFAIL of sysexits.h: try again later)."""
SIGNAL_CODE = 128
"""A run stopped by a signal exits with this plus the signal's number, as a shell reports it."""
SAME = 1.0
"""Seconds in which a repeated signal counts as the same: Ctrl-C reaches each process twice under torchrun."""
_OVER = 1
"""Code of the time limit in `StopAfterStep`; a signal's is its number plus this."""
SWEEP = "GLC_SWEEP"
"""Environment variable with the folder through which a sweep stops its jobs in other processes."""


class Stop(NamedTuple):
    """Why and where a run stopped early."""

    reason: str
    """The signal's name, or the time limit."""
    code: int
    """Exit code."""
    step: int = 0
    """Optimizer steps done."""
    checkpoint: Path | None = None
    """The checkpoint of that step; None if none was saved."""


class Stopped(SystemExit):
    """A signal ended the run. A `SystemExit`, so that it also ends a sweep."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.code)
        self.stop = stop


class StopSignals:
    """Records the first signal within the context; a second one ends the process at once.

    During training the signal is only recorded. At other times there is no step to complete, and the handler
    raises `Stopped`. Signals: SIGTERM and SIGINT, unless they are ignored or somebody else handles them (such
    as submitit); SIGUSR1 under SLURM; SIGUSR1 and SIGUSR2 if somebody handles them, who is then called after
    the checkpoint has been written (`hand_over`). Contexts can be nested.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.training = False
        """Whether a step may be running, so that a signal must not interrupt it."""
        self.launcher: Any = None
        """Lightning's launcher, which may have started other processes of this run."""
        self._since = 0.0
        self._previous: dict[signal.Signals, Any] = {}
        self._depth = 0
        self._jobs: Path | None = None
        self._jobs_ended = False

    def __enter__(self) -> "StopSignals":
        if self._depth == 0 and threading.current_thread() is threading.main_thread():
            self.received, self._jobs_ended, self._previous = None, False, _to_handle()
            self.install()
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self._previous = {}

    def install(self) -> None:
        """Install the handlers, in place of those that Lightning installs at each start of a trainer.

        Lightning's would broadcast from within the handler, which deadlocks if another collective is pending.
        """
        if threading.current_thread() is threading.main_thread():
            for number in self._previous:
                signal.signal(number, self._handle)

    def hand_over(self) -> None:
        """Call the handler that somebody else had installed for the received signal, if any."""
        handler = self._previous.get(self.received) if self.received is not None else None
        if callable(handler) and handler is not signal.default_int_handler:
            handler(self.received, None)

    @contextlib.contextmanager
    def sweep(self) -> Iterator[None]:
        """Stop the jobs of a sweep that run in other processes, too, and end when they have stopped."""
        with tempfile.TemporaryDirectory(prefix="glc-sweep-") as folder, self:
            self._jobs, os.environ[SWEEP] = Path(folder), f"{os.getpid()}:{folder}"
            try:
                yield
            finally:
                self._jobs = None
                del os.environ[SWEEP]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._jobs_ended:
            raise Stopped(_stop_by(signal.Signals(number)))
        if self.received is not None:
            if time.monotonic() - self._since > SAME:
                self._end_now(number)
            return
        self.received, self._since = signal.Signals(number), time.monotonic()
        if not self.training:
            if self._jobs is None or not _job_processes(self._jobs):
                raise Stopped(_stop_by(self.received))
            (self._jobs / "stop").touch()
            threading.Thread(target=self._await_jobs, args=(self._jobs,), daemon=True).start()
        if is_first_process():
            name = self.received.name
            # Not by `logging` or `print`, whose buffers the signal may have interrupted.
            os.write(2, f"\n{name}: stopping after this step; another {name} ends at once\n".encode())

    def _await_jobs(self, jobs: Path) -> None:
        while _job_processes(jobs):
            time.sleep(0.1)
        self._jobs_ended = True
        assert self.received is not None
        os.kill(os.getpid(), self.received)

    def _end_now(self, number: int) -> None:
        if hasattr(self.launcher, "kill"):
            self.launcher.kill(signal.SIGKILL)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


SIGNALS = StopSignals()
"""The signals of this process."""


def _to_handle() -> dict[signal.Signals, Any]:
    """Return the signals to handle, and their present handlers."""
    ours = {name: [signal.SIG_DFL] for name in ("SIGTERM", "SIGINT")}
    ours["SIGINT"].append(signal.default_int_handler)  # type: ignore[arg-type]
    if "SLURM_JOB_ID" in os.environ:
        ours["SIGUSR1"] = [signal.SIG_DFL]
    found = {}
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
        number = getattr(signal, name, None)
        handler = None if number is None else signal.getsignal(number)
        if number is not None and (
            handler in ours.get(name, []) or (callable(handler) and name.startswith("SIGUSR"))
        ):
            found[number] = handler
    return found


def _stop_by(number: signal.Signals) -> Stop:
    return Stop(number.name, SIGNAL_CODE + number)


def sweep_folder() -> Path | None:
    """Return the folder of the sweep of which this process runs a job; None in the sweep's own process."""
    owner, _, folder = os.environ.get(SWEEP, "").partition(":")
    return Path(folder) if folder and int(owner) != os.getpid() and Path(folder).is_dir() else None


def _job_processes(folder: Path) -> list[int]:
    """Return the running processes that have a job of a sweep."""
    found = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    return [number for number in found if _runs(number)]


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def job_of_sweep() -> Iterator[None]:
    """Register this process as one with a job of a sweep in another process, within the context.

    Raises:
        Stopped: the sweep has been stopped.
    """
    folder = sweep_folder()
    if folder is None:
        yield
        return
    mine = folder / str(os.getpid())
    mine.touch()
    try:
        if (folder / "stop").exists():
            raise Stopped(_stop_by(signal.SIGTERM))
        yield
    finally:
        mine.unlink(missing_ok=True)


class StopAfterStep(L.Callback):
    """Stop training after a complete step when a signal was received or the time is over; validate the last.

    The time is counted from the start or resume of the run: Lightning's `max_time` counts over all parts of a
    run, so a resumed run would stop at once. Training never ends between accumulated batches, because a
    checkpoint holds no gradients.

    All processes decide together after each step, which synchronises them. Lightning does so at each batch
    anyway. A signal also ends a validation; its checkpoint was written before (`LastCheckpoint`).

    Args:
        minutes: the time limit; None for no limit.
        signals: records signals.
    """

    def __init__(self, minutes: float | None = None, signals: StopSignals = SIGNALS) -> None:
        self.minutes = minutes
        self.signals = signals
        self.stop: Stop | None = None
        """Why training stopped; None as long as nothing stopped it."""
        self._start = time.monotonic()
        self._step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over from Lightning; record the first step."""
        self.signals.launcher = trainer.strategy.launcher
        self.signals.training = True
        self.signals.install()
        self._step = trainer.global_step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over from Lightning, which installs its handlers for `trainer.validate` too."""
        self.signals.install()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on, signals end the process."""
        self.signals.training = False

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """From here on, signals end the process. Close the progress bar, so that messages start a line."""
        was_training, self.signals.training = self.signals.training, False
        bar = trainer.progress_bar_callback
        if bar is not None and was_training and isinstance(exception, Stopped):  # during a validation
            bar.on_validation_end(trainer, pl_module)
            bar.on_train_end(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decide after a step."""
        stepped = trainer.global_step != self._step
        self._step = trainer.global_step
        if not stepped:
            return
        complete = self._step == trainer.max_steps or (
            trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        )
        if complete:
            # Lightning then validates, also where no validation is due, so `val/*` are of the final weights.
            trainer.check_val_every_n_epoch = None
            trainer.should_stop = True
        over = self.minutes is not None and time.monotonic() - self._start > 60 * self.minutes
        self.stop = self._decide(trainer, _OVER if over and not complete else 0)
        if self.stop is None:
            return
        trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None  # would delay the end, too
        trainer.should_stop = True

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Skip the validation with which Lightning ends training early; `LastCheckpoint` has just saved.

        A time limit leaves time for the validation at the end of an epoch.

        Raises:
            Stopped: training stops here.
        """
        if self.stop is not None and not (self.stop.code == TIME_LIMIT_CODE and trainer.is_last_batch):
            raise Stopped(self.stop)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """End a validation within training.

        Raises:
            Stopped: a process has received a signal.
        """
        if self.signals.training and (stop := self._decide(trainer)):
            self.stop = stop
            raise Stopped(stop)

    def _decide(self, trainer: L.Trainer, own: int = 0) -> Stop | None:
        """Return the reason to stop of any process; signals come before the time limit.

        Args:
            trainer: the trainer.
            own: `_OVER` if the time is over in this process, else 0.
        """
        folder = sweep_folder()
        if self.signals.received is not None:
            own = _OVER + self.signals.received
        elif folder is not None and (folder / "stop").exists():
            own = _OVER + signal.SIGTERM
        if trainer.world_size > 1:
            value = torch.tensor(own, device=trainer.strategy.root_device)
            own = int(trainer.strategy.reduce(value, reduce_op="max"))
        if own > _OVER:
            return _stop_by(signal.Signals(own - _OVER))
        return Stop(f"max_minutes={self.minutes}", TIME_LIMIT_CODE) if own else None
