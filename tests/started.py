"""Commands as a user types them, each in a process of its own, but without the seconds of imports of each.

A process that has imported what the commands import waits for them, and forks itself for each. Nothing has
run in it, so that a command finds what it finds in a fresh interpreter.
"""

import atexit
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def start(
    words: Sequence[str], environment: Mapping[str, str] | None = None, seconds: float = 240
) -> "subprocess.CompletedProcess[str]":
    """Run what `python WORDS` would, from the project's folder and with nothing to read from.

    Args:
        words: `-m MODULE ARGUMENTS`, `-c PROGRAM ARGUMENTS` or `SCRIPT ARGUMENTS`.
        environment: on top of this process's.
        seconds: at most.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        shown = [Path(folder, name) for name in ("out", "err")]
        values = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        order = {"words": list(map(str, words)), "environment": values, "shown": list(map(str, shown))}
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], seconds)[0]:
            os.killpg(server.pid, signal.SIGKILL)
            _server.cache_clear()
            raise subprocess.TimeoutExpired(list(words), seconds)
        code = int(server.stdout.readline())
        out, err = (path.read_text(errors="replace") for path in shown)
        return subprocess.CompletedProcess(list(words), code, out, err)


@cache
def _server() -> "subprocess.Popen[str]":
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.started"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert server.stdin is not None
    atexit.register(server.stdin.close)
    return server


def _serve() -> None:
    import src.train  # noqa: F401

    # What a command runs is imported anew, as `python -m` does.
    del sys.modules["src.train"]
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(words: list[str], environment: dict[str, str], shown: list[str]) -> Any:
    code = 1
    for inherited in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        inherited.atexit = False  # such as the removal of a folder that all of them share
    try:
        os.environ.clear()
        os.environ.update(environment)
        for descriptor, path in enumerate([os.devnull, *shown]):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(words[1], {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
