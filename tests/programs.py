"""Start programs in processes, and load scripts/ as modules.

`start` and `Started` fork a process with the usual imports already done (multiprocessing's fork server),
which saves the seconds of importing. `fresh` starts a new interpreter.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
IMPORTED = [
    "torch",
    "hydra",
    "lightning",
    "wandb",
    "webdataset",
    "torchmetrics",
    "glc.cli",
    "glc.launch.train",
    "tests.warmed",
]
PROGRAMS = ("glc.launch.train", "glc.launch.evaluate")
TRAIN = ("-m", "src.train")
EVALUATE = ("-m", "src.evaluate")
GLC = ("-m", "glc")


class Started:
    """A program that runs in its own session (process group).

    Args:
        words: `-m MODULE ARGUMENTS`, `-c PROGRAM ARGUMENTS` or `SCRIPT ARGUMENTS`, as after `python`.
        environment: variables added to this process's.
        terminal: path of the terminal that is its standard error; None: a file.
        folder: working directory.
    """

    def __init__(
        self,
        words: Sequence[object],
        environment: Mapping[str, str] | None = None,
        terminal: str | None = None,
        folder: Path = ROOT,
    ) -> None:
        self.words = [str(word) for word in words]
        self.folder = tempfile.TemporaryDirectory()
        self.shown = [Path(self.folder.name, name) for name in ("out", "err")]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        outputs = [str(self.shown[0]), terminal or str(self.shown[1])]
        self.process = fork_server().Process(target=_run, args=(self.words, variables, str(folder), outputs))
        self.process.start()

    def running(self) -> bool:
        """Whether the program is running."""
        return self.process.is_alive()

    def kill(self) -> None:
        """Kill the program and its children (SIGKILL)."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # already ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def finish(self, seconds: float | None = 240) -> "subprocess.CompletedProcess[str]":
        """Wait for the end; return exit code and output.

        Raises:
            subprocess.TimeoutExpired: still running after `seconds`; the program is killed.
        """
        with self.folder:
            self.process.join(seconds)
            if self.running():
                self.kill()
                raise subprocess.TimeoutExpired(self.words, seconds or 0)
            out, err = (path.read_text(errors="replace") if path.exists() else "" for path in self.shown)
            assert self.process.exitcode is not None
            return subprocess.CompletedProcess(self.words, self.process.exitcode, out, err)


def start(words: Sequence[object], **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end without standard input; see `Started`."""
    return Started(words, **options).finish()


def fresh(
    words: Sequence[object], environment: Mapping[str, str] | None = None, folder: Path = ROOT
) -> "subprocess.CompletedProcess[str]":
    """Run a program in a new interpreter."""
    command = [sys.executable, *map(str, words)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=240, check=False
    )


def load_script(name: str) -> types.ModuleType:
    """Return scripts/NAME.py as a module, without running it."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def fork_server() -> ForkServerContext:
    """Return a context whose processes begin with the usual imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    # In this folder, where the server finds `tests`: the first test to need it may be in another one.
    with patch.dict(os.environ, OMP_NUM_THREADS="1"), contextlib.chdir(ROOT):
        forkserver.ensure_running()
    return context


def _run(words: list[str], variables: dict[str, str], folder: str, outputs: list[str]) -> None:
    """Main function of the forked process; exit handlers of the imports run in the fork server only."""
    os.setsid()
    os.environ.clear()
    os.environ.update(variables)
    for descriptor, path in enumerate([os.devnull, *outputs]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOCTTY), descriptor)
    os.chdir(folder)
    given = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [path for path in given if path not in sys.path]
    if words[0] == "-m":
        sys.argv = words[1:]
        for name in (words[1], *PROGRAMS):
            sys.modules.pop(name, None)  # import the program again, as `python -m` does
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        own = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(words[1], own.__dict__)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")
