"""Programs in processes of their own, without the seconds of imports that each would take.

A process that has imported what programs import waits for orders, and forks itself for each. Nothing else has
run in it, so that a program finds what it finds in a fresh interpreter.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import types
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
IMPORTED = {
    "torch": ("torch",),
    "all": (
        "torch",
        "hydra",
        "lightning",
        "wandb",
        "webdataset",
        "torchmetrics",
        "glc.cli",
        "glc.launch.train",
    ),
}


class Started:
    """A program that runs; one at a time.

    Args:
        words: `-m MODULE ARGUMENTS`, `-c PROGRAM ARGUMENTS` or `SCRIPT ARGUMENTS`, as after `python`.
        environment: on top of this process's.
        imported: what it finds imported: a key of `IMPORTED`.
        terminal: what it has for standard error, by its path; None: a file.
        folder: where it runs.
    """

    def __init__(
        self,
        words: Sequence[object],
        environment: Mapping[str, str] | None = None,
        imported: str = "all",
        terminal: str | None = None,
        folder: Path = ROOT,
    ) -> None:
        self.words = [str(word) for word in words]
        self.folder = tempfile.TemporaryDirectory()
        self.shown = [Path(self.folder.name, name) for name in ("out", "err")]
        order = {
            "words": self.words,
            "environment": {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            "folder": str(folder),
            "shown": [str(self.shown[0]), terminal or str(self.shown[1])],
        }
        self.server = _server(imported)
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()

    def finish(self, seconds: float = 240) -> "subprocess.CompletedProcess[str]":
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it did not come.
        """
        with self.folder:
            assert self.server.stdout is not None
            if not select.select([self.server.stdout], [], [], seconds)[0]:
                os.killpg(self.server.pid, signal.SIGKILL)
                _server.cache_clear()
                raise subprocess.TimeoutExpired(self.words, seconds)
            code = int(self.server.stdout.readline())
            out, err = (path.read_text(errors="replace") if path.exists() else "" for path in self.shown)
            return subprocess.CompletedProcess(self.words, code, out, err)


def start(words: Sequence[object], **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, with nothing to read; see `Started`."""
    return Started(words, **options).finish()


@cache
def _server(imported: str) -> "subprocess.Popen[str]":
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.started", *IMPORTED[imported]],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(server.communicate)
    return server


def _serve(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    # What a program runs is imported anew, as `python -m` does.
    sys.modules.pop("glc.launch.train", None)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(words: list[str], environment: dict[str, str], folder: str, shown: list[str]) -> Any:
    code: Any = 1
    # What the imports have asked for at an exit is for the end of all: W&B removes a folder that all share.
    atexit._clear()
    for inherited in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        inherited.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    try:
        os.environ.clear()
        os.environ.update(environment)
        for descriptor, path in enumerate([os.devnull, *shown]):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOCTTY), descriptor)
        os.chdir(folder)
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            own = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(words[1], own.__dict__)
        else:
            sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1:])
