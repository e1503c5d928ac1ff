"""Options of the stress tests, and a harness that kills a command at random moments and resumes it.

make stress                                               the long form of all
make stress ARGS="-k fuzz --stress rounds=100000"         the long form of one, with more rounds
pytest -m stress                                          the short form, seconds each; `make test` runs it
"""

import contextlib
import csv
import dataclasses
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.programs import Started


@dataclasses.dataclass(frozen=True)
class Stress:
    """Options of a session: `--long`, and one field per `--stress KEY=VALUE`."""

    long: bool = False
    rounds: int | None = None
    """Number of kills, changed files or round trips."""
    seed: int = 0
    device: str = "cpu"
    weights: Path | str = ""
    """Codec to test, a file or a model's name; default: a tiny one with fixed weights."""
    images: Path | None = None
    """Folder of images; default: generated ones."""
    lpips: Path | None = None
    """Folder with LPIPS' weights; without it LPIPS is not measured."""
    files: Path | None = None
    """Folder with files of another machine (its `output`), to decode here too."""
    output: Path | None = None
    """Folder for all output; default: a temporary one."""

    @classmethod
    def read(cls, long: bool, words: list[str]) -> Self:
        """Return the options in words such as `rounds=20`.

        Raises:
            ValueError: unknown key, missing value, or a value that is not a number where one is needed.
        """
        values: dict[str, Any] = {}
        for word in words:
            key, _, value = word.partition("=")
            if key == "long" or key not in {field.name for field in dataclasses.fields(cls)} or not value:
                raise ValueError(f"{word}: give KEY=VALUE, KEY one of {', '.join(cls.__annotations__)}")
            kinds = {"rounds": int, "seed": int, "device": str}
            is_path = key not in (*kinds, "weights") or Path(value).is_file()
            values[key] = Path(value).resolve() if is_path else kinds.get(key, str)(value)
        return cls(long, **values)

    def count(self, short: int, long: int) -> int:
        """Return `rounds`, or the default of the short or long form."""
        return self.rounds or (long if self.long else short)

    def random(self) -> random.Random:
        """Return the random numbers of a test."""
        return random.Random(self.seed)


Moment = Callable[[], bool]
"""Whether to kill now; polled while the command runs."""


def kill_and_resume(
    start: Callable[[], Started],
    moments: Callable[[int], Moment],
    kills: int,
    chance: random.Random,
    ended: tuple[int, ...] = (0,),
    unfinished: tuple[int, ...] = (),
) -> Counter[str]:
    """Kill a command (SIGKILL) at chosen moments and start it again until it ends by itself.

    Half of the kills hit one worker process, if it has any; the others hit all processes.

    Args:
        start: starts the command.
        moments: returns the moment of the next kill, given the number of kills so far.
        kills: number of kills; fewer if the command ends earlier.
        chance: random numbers.
        ended: exit codes of a finished command.
        unfinished: exit codes of a command that must be started again.

    Returns:
        The numbers of starts, of kills of the command, and of kills of a worker.
    """
    found: Counter[str] = Counter()
    while True:
        process = start()
        found["starts"] += 1
        while process.running() and (dead := found["command"] + found["process"]) < kills:
            moment = moments(dead)
            while process.running() and not moment():
                time.sleep(0.002)
            workers = workers_of(process) if process.running() else []
            if workers and chance.random() < 0.5:
                os.kill(chance.choice(workers), signal.SIGKILL)
                found["process"] += 1
            elif process.running():
                process.kill()
                found["command"] += 1
        done = process.finish(None)
        if done.returncode in ended:
            return found
        assert done.returncode in (*unfinished, -signal.SIGKILL), done.stdout + done.stderr
        assert found["starts"] <= 5 * kills + 5, "the command does not end"


def workers_of(process: Started) -> list[int]:
    """Return the worker processes of a command (Linux; none elsewhere)."""
    pid = process.process.pid
    with contextlib.suppress(OSError):  # it has ended
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(x) for x in children if b"spawn_main" in Path(f"/proc/{x}/cmdline").read_bytes()]
    return []


def as_work_grows(
    folder: Path, undisturbed: Path, kills: int, chance: random.Random
) -> Callable[[int], Moment]:
    """Return moments spread over a command's work, measured in bytes written by an undisturbed run."""
    total = size_of(undisturbed)

    def next_moment(dead: int) -> Moment:
        reached = size_of(folder)
        room = (total - reached) / (kills - dead + 1)
        target = reached + chance.uniform(0, 1.8 * room)
        return lambda: size_of(folder) > target

    return next_moment


def size_of(folder: Path) -> int:
    """Return the bytes in a folder that other processes may write to."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def contents(folder: Path) -> dict[str, Any]:
    """Return the output files of a command by name, without hidden files, journals and times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and path.name != "journal.jsonl":
            found[str(name)] = _without_seconds(path)
    return found


def _without_seconds(path: Path) -> Any:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [_strip(row) for row in csv.DictReader(file)]
    return _strip(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


def _strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip(item) for key, item in value.items() if not key.endswith("seconds")}
    return [_strip(item) for item in value] if isinstance(value, list) else value
