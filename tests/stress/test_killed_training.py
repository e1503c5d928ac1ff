"""Training runs killed at random moments end with the losses and weights of undisturbed ones, bit for bit."""

import csv
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glc.data.pack import pack
from glc.data.sources import sample_paths
from tests.programs import TRAIN, Started, start
from tests.short_runs import QUIET, STAGES, arguments, checkpoint, settings
from tests.stress.harness import Moment, Stress, kill_and_resume

EVERY, EPOCH = 4, 10
"""Steps between checkpoints; batches per epoch, at whose end a checkpoint is written too."""
KILLS_PER_RUN = 4
# The source of images differs by stage: a list in memory, shards, shards through worker processes.
LOADING: dict[str, dict[str, Any]] = {
    "vqvae": {"data.cache": "true", "data.num_workers": 0},
    "transform": {"data.cache": "false", "data.num_workers": 0, "data.shuffle": 4},
    "joint": {"data.cache": "false", "data.num_workers": 2, "data.shuffle": 4, "stage.accumulate": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("train", "test"):
        pack(sample_paths(name), folder / name, size=128, workers=1, progress=False)
    return folder


def words(data: Path, runs: Path, name: str, stage: str, steps: int) -> list[object]:
    """Return the command of a run: epochs, validations and checkpoints fall on different steps."""
    values: dict[str, Any] = {
        **settings(data / "train", runs, name, stage, steps),
        "data": "samples",
        "data.val": data / "test",
        "data.val_limit": 1,
        "data.epoch_batches": EPOCH,
        "batch": 4,
        "model.projected_codebooks": "false",
        "callbacks.last.every_n_steps": EVERY,
        "callbacks.ema.decay": 0.8,
        "callbacks.codebooks.initialize_after": 5,
        "callbacks.codebooks.restart_every": 3,
        "callbacks.panel": "null",
        "callbacks.progress": "null",
        "+trainer.enable_progress_bar": "false",
        "stage.schedule.warmup": 2,
        "stage.optimizer.lr": 1e-3,
        "resume": "auto",
        **LOADING[stage],
    }
    del values["data.stride"], values["data.batch_size"]
    if stage != "transform":
        values["stage.discriminator_start"] = 3
    undisturbed = {name: runs / "undisturbed" / name / "checkpoints" / "last.ckpt" for name in STAGES}
    if stage != "vqvae":
        values["init_from"] = undisturbed[STAGES[STAGES.index(stage) - 1]]
    if stage == "joint":
        values["stage.discriminator_from"] = undisturbed["vqvae"]
    return [*TRAIN, *arguments(values)]


def moments(folder: Path, seconds: float, chance: random.Random) -> Callable[[int], Moment]:
    """Return moments after a random time or during the writing of a checkpoint."""
    partial = folder / "checkpoints" / ".last.ckpt.part"

    def next_moment(dead: int) -> Moment:
        if chance.random() < 0.4:
            return during_a_write(partial, chance.randrange(3))
        deadline = time.monotonic() + chance.uniform(0.3, max(0.4, seconds))
        return lambda: time.monotonic() > deadline

    return next_moment


def during_a_write(partial: Path, skip: int) -> Moment:
    """Return the moment when a file is being written, after `skip` earlier writes."""
    seen, left = False, skip

    def moment() -> bool:
        nonlocal seen, left
        before, seen = seen, partial.exists()
        left -= seen and not before
        return seen and left < 0

    return moment


def damage(folder: Path, chance: random.Random) -> None:
    """Flip a bit in the last checkpoint or truncate it, if there is a previous one."""
    last, previous = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "previous.ckpt"
    if not previous.is_file() or previous.samefile(last):
        return
    content = bytearray(last.read_bytes())
    if chance.random() < 0.5:
        content[chance.randrange(len(content))] ^= 0x10
    else:
        del content[chance.randrange(len(content)) :]
    last.unlink()  # a new file: hard links keep the old content
    last.write_bytes(content)


def losses(folder: Path) -> dict[int, set[str]]:
    """Return the logged losses of each step as text, over all CSV files of a run."""
    found: dict[int, set[str]] = {}
    for path in sorted(folder.glob("csv/version_*/metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get("train/loss"):
                    found.setdefault(int(row["step"]), set()).add(row["train/loss"])
    return found


def differences(a: Any, b: Any, place: str) -> list[str]:
    """Return the paths at which two nested values differ in any bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a.nan_to_num(), b.nan_to_num()) else [place]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{place}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [found for i, (one, two) in pairs for found in differences(one, two, f"{place}/{i}")]
    return [] if a == b else [place]


def compare(folder: Path, undisturbed: Path, steps: int, saved: tuple[int, ...]) -> None:
    """Compare a resumed run with the undisturbed one; `saved` are the batches between checkpoints."""
    expected, found = losses(undisturbed), losses(folder)
    # A row is written right after the checkpoint of its step: a kill between the two loses the row.
    missing = [i for i in expected if i not in found and all((i + 1) % period for period in saved)]
    assert not missing, f"batches that were never logged: {missing}"
    assert found == {i: expected[i] for i in found}
    one, other = checkpoint(folder), checkpoint(undisturbed)
    assert one["global_step"] == other["global_step"] == steps
    for state in (one, other):
        del state["glc"]  # names the folders
        for name in [name for name in state["callbacks"] if "Checkpoint" in name]:
            del state["callbacks"][name]
    assert {"CodebookCare", "MovingAverage"} <= one["callbacks"].keys()
    assert differences(one, other, "checkpoint") == []


@pytest.mark.parametrize("stage", STAGES)
def test_killed_training_resumes_bit_for_bit(data: Path, tmp_path: Path, stress: Stress, stage: str) -> None:
    if not stress.long and stage != "vqvae":
        pytest.skip("--long kills the other stages too")
    assert stress.output is not None
    steps, runs = (24 if stress.long else 9), stress.output / "runs"
    for needed in STAGES[: STAGES.index(stage) + 1]:
        began = time.monotonic()
        done = start(words(data, runs, "undisturbed", needed, steps), environment=QUIET)
        assert done.returncode == 0, done.stdout + done.stderr
        seconds = time.monotonic() - began
    chance = stress.random()
    kills, tried, dead = stress.count(2, 7), 0, 0
    saved = (EVERY * int(LOADING[stage].get("stage.accumulate", 1)), EPOCH)
    while dead < kills and tried < 3 * kills:
        tried += 1
        folder = runs / f"killed-{tried}" / stage
        command = words(data, runs, f"killed-{tried}", stage, steps)

        def begin(command: list[object] = command, folder: Path = folder) -> Started:
            if chance.random() < 0.25:
                damage(folder, chance)
            (folder / "checkpoints" / ".last.ckpt.part").unlink(missing_ok=True)
            return Started(command, environment=QUIET)

        left = min(KILLS_PER_RUN, kills - dead)
        found = kill_and_resume(begin, moments(folder, seconds, chance), left, chance)
        dead += found["command"]
        compare(folder, runs / "undisturbed" / stage, steps, saved)
    assert dead == kills
