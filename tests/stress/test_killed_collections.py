"""Compression and evaluation jobs killed at random moments end with the files of undisturbed ones."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from glc.data.images import read_rgb
from glc.data.sources import sample_paths
from tests.evaluation.stand_ins import write_images
from tests.jobs.stand_ins import read_tar, write_tar
from tests.programs import EVALUATE, GLC, Started, start
from tests.short_runs import QUIET
from tests.stress.harness import Stress, as_work_grows, contents, kill_and_resume

Words = Callable[[Path, int], list[object]]
"""Maps an output folder and a number of processes to a command."""
DAMAGED = 25
"""One image in this many is truncated."""


def write_shards(folder: Path, shards: int, images: int, side: int, chance: random.Random) -> list[int]:
    """Write shards of crops with a text file each; return the numbers of the truncated images."""
    sources = [read_rgb(path) for path in sample_paths("train")]
    damaged = list(range(DAMAGED // 3, images, DAMAGED))
    for shard in range(shards):
        members = []
        for number in range(shard * images // shards, (shard + 1) * images // shards):
            source = chance.choice(sources)
            left, top = (chance.randrange(length - side) for length in source.size)
            stream = io.BytesIO()
            box = (left, top, left + side - chance.randrange(9), top + side)
            source.crop(box).save(stream, "JPEG", quality=95)
            content = stream.getvalue()
            if number in damaged:
                content = content[: len(content) // 2]
            members += [(f"{number:08d}.jpg", content), (f"{number:08d}.txt", f"image {number}".encode())]
        write_tar(folder / f"in-{shard:06d}.tar", members)
    return damaged


def disturbed(words: Words, stress: Stress, kills: int, processes: int, ended: int) -> Path:
    """Run a command undisturbed and killed, compare the outputs, return the folder of the killed one."""
    assert stress.output is not None
    alone, killed = stress.output / "alone", stress.output / "killed"
    environment = {**QUIET, "CUDA_VISIBLE_DEVICES": ""}
    done = start(words(alone, 1), environment=environment)
    assert done.returncode == ended, done.stdout + done.stderr
    chance = stress.random()
    found = kill_and_resume(
        lambda: Started(words(killed, processes), environment=environment),
        as_work_grows(killed, alone, kills, chance),
        kills,
        chance,
        ended=(ended,),
        unfinished=(3,),
    )
    print(dict(found))
    assert found["command"] + found["process"] > kills // 2, "the command ended before it was killed"
    assert contents(killed) == contents(alone)
    return killed


@pytest.mark.parametrize("kind", ["compress", "evaluate"])
def test_killed_shard_job_has_every_sample_once(stress: Stress, kind: str) -> None:
    assert stress.output is not None
    shards, images, processes = (20, 2000, 3) if stress.long else (3, 60, 1)
    if kind == "evaluate" and stress.long:
        shards, images, processes = 6, 600, 2
    source_folder = stress.output / "in"
    damaged = write_shards(source_folder, shards, images, 48, stress.random())
    pattern = source_folder / f"in-{{000000..{shards - 1:06d}}}.tar"

    def words(out: Path, processes: int) -> list[object]:
        if kind == "compress":
            options = ["--keep", "--processes", processes, "--quiet", "--device", "cpu"]
            return [*GLC, "compress", "--shards", pattern, "-o", out, "--model", stress.weights, *options]
        metrics = ["metrics=default", f"metrics.weights_dir={stress.lpips or stress.output}"]
        data = ["testset=shards", f"testset.path='{pattern}'", "qualities=[30,70]", "device=cpu"]
        return [*EVALUATE, f"codec={stress.weights}", *data, *metrics, f"out={out}", f"processes={processes}"]

    killed = disturbed(words, stress, stress.count(2, 10), processes, ended=1)
    names = [name for path in killed.glob("*.tar") for name in read_tar(path)]
    done = [int(name.partition(".")[0]) for name in names if name.endswith((".glc", ".json"))]
    failed = [int(json.loads(line)["key"]) for line in (killed / "failures.jsonl").read_text().splitlines()]
    assert sorted(failed) == damaged
    assert sorted(done + failed) == list(range(images))
    totals = json.loads((killed / "manifest.json").read_text())["totals"]
    assert (totals["samples"], totals["done"], totals["failed"]) == (images, len(done), len(damaged))


def test_killed_evaluation_of_a_folder_gives_the_same_files(stress: Stress) -> None:
    assert stress.output is not None
    folder = stress.images or write_images(stress.output / "in", [(96, 128)] * (24 if stress.long else 12))
    weights = [] if stress.lpips is None else [f"metrics.weights_dir={stress.lpips}"]

    def words(out: Path, processes: int) -> list[object]:
        data = ["testset=folder", f"testset.path={folder}", "metrics=default", f"processes={processes}"]
        return [*EVALUATE, "codec=[jpeg,webp]", *data, *weights, f"out={out}"]

    disturbed(words, stress, stress.count(2, 5), 2 if stress.long else 1, ended=0)
