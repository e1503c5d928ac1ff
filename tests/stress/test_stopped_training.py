"""Runs stopped by SIGTERM, SIGINT and SIGKILL at random moments equal undisturbed ones, step by step.

SIGTERM and SIGINT lose no step. Also with two processes: in the environment of torchrun, and in the long form
started by it.
"""

import csv
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.programs import Started
from tests.short_runs import QUIET, checkpoint
from tests.stress.harness import Stress
from tests.stress.test_killed_training import EPOCH, EVERY, compare, data, words
from tests.stress.test_two_nodes import free_port

__all__ = ["data"]

STAGE = "vqvae"
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}


def launch(command: list[object], how: str) -> list[Started]:
    """Start a training run as one process, as two in torchrun's environment, or by torchrun."""
    if how == "one":
        return [Started(command, environment=QUIET)]
    if how == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        return [Started([*torchrun, *command], environment=QUIET)]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "forked"}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"}
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
    return [Started(command, environment={**QUIET, **shared, **rank}) for rank in ranks]


def rows(folder: Path) -> int:
    """Return the number of training steps that the newest start of a run has logged; -1 before it starts."""
    files = sorted(folder.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    if not files:
        return 0
    with files[-1].open(newline="") as file:
        return sum(bool(row.get("train/loss")) for row in csv.DictReader(file))


def starts(folder: Path) -> int:
    return len(list(folder.glob("csv/version_*/metrics.csv")))


def stop(processes: list[Started], number: signal.Signals, how: str, chance: random.Random) -> None:
    """Send a signal: to the process group as a terminal does, to one process, or to all."""
    for process in (
        processes if number == signal.SIGKILL else chance.sample(processes, chance.randint(1, len(processes)))
    ):
        pid = process.process.pid
        assert pid is not None
        if number == signal.SIGKILL or (how == "one" and chance.random() < 0.5):
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


@pytest.mark.parametrize("how", ["one", "forked", "torchrun"])
def test_stopped_training_resumes_step_by_step(data: Path, stress: Stress, how: str) -> None:
    if how == "torchrun" and not stress.long:
        pytest.skip("--long starts torchrun")
    assert stress.output is not None
    runs, steps = stress.output / "runs", 30 if stress.long else 13
    options = ["max_minutes=null"] if how == "one" else ["trainer=ddp", "trainer.accelerator=cpu"]

    def command(name: str) -> list[object]:
        return [*words(data, runs, name, STAGE, steps), *options]

    for process in launch(command("undisturbed"), how):
        done = process.finish()
        assert done.returncode == 0, done.stdout + done.stderr
    chance = stress.random()
    planned = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL]
    wanted, sent, tried = stress.count(3, 18), Counter[signal.Signals](), 0
    while sum(sent.values()) < wanted:
        tried += 1
        assert tried <= 2 * wanted
        folder = runs / f"stopped-{tried}" / STAGE
        while True:
            before, number = starts(folder), planned[sum(sent.values()) % 3]
            processes = launch(command(f"stopped-{tried}"), how)
            left = chance.randint(1, 5)  # steps until the signal
            while all(p.running() for p in processes) and (starts(folder) == before or rows(folder) < left):
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.1))
            signalled = sum(sent.values()) < wanted and all(p.running() for p in processes)
            if signalled:
                stop(processes, number, how, chance)
            results = [process.finish(120) for process in processes]
            codes = {result.returncode for result in results}
            shown = "".join(result.stdout + result.stderr for result in results)
            if codes == {0}:
                break
            assert signalled, shown
            expected = 1 if how == "torchrun" and number != signal.SIGKILL else CODES[number]
            assert codes == {expected}, shown
            sent[number] += 1
            if number != signal.SIGKILL:
                # Nothing is lost: every logged step is in the checkpoint.
                step = checkpoint(folder)["global_step"]
                assert f"stopped by {number.name} after step {step}; saved " in shown
                assert rows(folder) == step - (0 if before == 0 else resumed_at(folder))
        compare(folder, runs / "undisturbed" / STAGE, steps, (EVERY, EPOCH))
    assert len(sent) == 3


def resumed_at(folder: Path) -> int:
    """Return the first step that the newest start of a run has logged."""
    newest = max(folder.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    with newest.open(newline="") as file:
        return min(int(row["step"]) for row in csv.DictReader(file) if row.get("train/loss"))
