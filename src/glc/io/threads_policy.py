"""How PyTorch's OpenMP threads wait for work; chosen before torch is loaded.

By default they spin for milliseconds before they sleep: fast while each thread has a core of its own, but
otherwise it takes the cores from threads that have work. With `OMP_WAIT_POLICY=passive` they sleep at once.
PyTorch's libgomp reads `OMP_WAIT_POLICY` and `GOMP_SPINCOUNT` once, when it is loaded.

Where oneDNN sums gradients of bfloat16 convolutions over threads, they wait in loops of its own, which no
setting changes: two threads on one core take 27 times as long as one (findings/onednn_bfloat16_barrier.sh).
So training in bfloat16 beside other programs uses no more threads than there are free cores.
"""

import logging
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

PASSIVE = {"OMP_WAIT_POLICY": "passive"}
"""The environment that makes waiting threads sleep."""
USER_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables of libgomp, and of the OpenMP of LLVM and Intel. If one is set, nothing is changed."""
TAKEN = 0.5
"""Share of the cores that others use from which on threads sleep."""

_SAMPLES = 5
_LAUNCHERS = ("local", "joblib", "submitit_local")
_description = "as the environment says"
_log = logging.getLogger(__name__)


def choose(words: Sequence[str] = (), started: Sequence[str] = (), bfloat16: bool = False) -> str:
    """Choose how the threads of this process and of its children wait, by environment variables.

    They sleep if this command starts processes that share the cores, or if other programs use them; else they
    spin as OpenMP's default is. Call this before torch is imported; later it affects child processes only.

    Args:
        words: the command line.
        started: settings that start processes on this machine, such as `data.num_workers=4`.
        bfloat16: convolutions are trained in bfloat16 on the CPU.

    Returns:
        The choice and its reason, in one line.
    """
    global _description
    _description = _chosen(words, started, bfloat16)
    _log.debug("threads: %s", _description)
    return _description


def _chosen(words: Sequence[str], started: Sequence[str], bfloat16: bool) -> str:
    given = next((name for name in USER_SETTINGS if name in os.environ), None)
    if given:
        return f"{given}={os.environ[given]} (from the environment)"
    reason = next(chain(_processes(words), started), None)
    if reason is None and (load := others()) >= TAKEN:
        reason = f"other programs use {load:.0%} of the cores"
        if bfloat16 and "OMP_NUM_THREADS" not in os.environ:
            os.environ["OMP_NUM_THREADS"] = str(max(1, int((os.cpu_count() or 1) * (1 - load))))
            reason += f"; OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}, the free ones, for bfloat16"
    if reason:
        os.environ.update(PASSIVE)
    else:
        return "OpenMP's default (this process is alone)"
    late = ", in child processes only: torch was already loaded" if "torch" in sys.modules else ""
    return f"OMP_WAIT_POLICY=passive ({reason}){late}"


def description() -> str:
    """Return what `choose` returned, for logs."""
    return _description


def _processes(words: Sequence[str]) -> Iterator[str]:
    """Yield what the words of a command line start beside this process."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        key, _, value = word.partition("=")
        if key == "--processes" and not value:
            value = following
        if key.lstrip("+") == "hydra/launcher" and value in _LAUNCHERS:
            yield word
        elif key == "--processes" and value.isdigit() and int(value) > 1:
            yield f"{key}={value}"
    if os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":
        yield f"LOCAL_WORLD_SIZE={os.environ['LOCAL_WORLD_SIZE']}"


def others() -> float:
    """Return the share of the cores that other programs use; 0 where the system does not say.

    That is the load of the last minute, but no more than the mean of now, since a program may have just
    ended, and no less than the median of now: several commands may have been started at once.
    """
    try:
        used = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows
        return 0.0
    with suppress(OSError, ValueError, IndexError):  # Linux only
        now = [_running() - 1 for _ in range(_SAMPLES)]
        used = max(min(used, statistics.fmean(now)), statistics.median_low(now))
    return used / (os.cpu_count() or 1)


def _running() -> int:
    """Return the number of threads on this machine that have work, this one included."""
    time.sleep(0.004)
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
