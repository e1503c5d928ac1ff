"""A Ray cluster whose workers and one of whose nodes are killed writes the shards of an undisturbed job."""

import json
import random
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from glc.cli.shards import make_job
from glc.jobs.engines import Engine
from glc.jobs.manifest import Folder
from glc.jobs.run import UnfinishedError
from glc.jobs.tar_shards import find_shards
from glc.jobs.worker import MakeProcessor, run_shards
from tests.jobs.ray_cluster import busy_workers, kill, raylet, two_nodes
from tests.jobs.stand_ins import contents, make_reverser, read_tar, write_tar
from tests.stress.harness import Stress
from tests.stress.test_killed_collections import write_shards

SHARDS = 20


def finished(out: Path) -> int:
    return len(list(out.glob(".glc/*/*.tar.json")))


def kill_at_random(
    cluster: Any, out: Path, kills: int, chance: random.Random, over: threading.Event
) -> Counter[str]:
    """Kill workers, and half-way the second node, as the number of finished shards grows."""
    found: Counter[str] = Counter()
    moments = sorted(chance.uniform(0, SHARDS - 4) for _ in range(kills))
    for number, moment in enumerate(moments):
        while not over.is_set() and (finished(out) < moment or not busy_workers(cluster)):
            time.sleep(0.01)
        if over.is_set():
            break
        if number == kills // 2:
            kill(raylet(cluster.list_all_nodes()[1]))
            found["node"] += 1
        else:
            time.sleep(chance.uniform(0, 0.1))
            if pids := busy_workers(cluster):
                kill(chance.choice(pids))
                found["worker"] += 1
    return found


def test_killed_cluster_has_every_sample_once(stress: Stress) -> None:
    assert stress.output is not None
    folder, chance = stress.output / "in", stress.random()
    settings: dict[str, Any] = {"command": "reverse"}
    make: MakeProcessor = partial(make_reverser, True)
    damaged: list[int] = []
    if stress.long:
        damaged = write_shards(folder, SHARDS, 2000, 48, chance)
        options = dict.fromkeys(("encoder", "memory", "quality", "target_bpp", "target_size", "member"))
        options |= {"model": str(stress.weights), "device": "cpu", "precision": "float32", "keep": True}
        job = make_job("compress", **options)
        settings, make = job.settings(), job
    else:
        for shard in range(SHARDS):
            samples = [
                (f"{shard:02d}{i}.txt", b"slow" if i == 0 else f"{shard} {i}".encode()) for i in range(5)
            ]
            write_tar(folder / f"in-{shard:06d}.tar", samples)
    shards, kills = find_shards([str(folder)]), stress.count(3, 18)
    run_shards(shards, stress.output / "alone", settings, make, Engine(), quiet=True)
    out, over, starts = stress.output / "killed", threading.Event(), 0
    with two_nodes() as cluster:
        killed: Counter[str] = Counter()
        killer = threading.Thread(
            target=lambda: killed.update(kill_at_random(cluster, out, kills, chance, over))
        )
        killer.start()
        try:
            while starts < 5:
                starts += 1
                try:
                    run_shards(shards, out, settings, make, Engine("ray"), quiet=True)
                    break
                except UnfinishedError as error:
                    print(error)
        finally:
            over.set()
            killer.join()
    print(dict(killed), f"{starts} starts")
    assert killed["node"] == 1
    assert contents(out) == contents(stress.output / "alone")
    names = [name for shard in shards for name in read_tar(out / shard.name)]
    done = [name.partition(".")[0] for name in names if name.endswith((".glc", ".rev"))]
    assert len(done) == len(set(done)) == (2000 if stress.long else 100) - len(damaged)
    assert json.loads((out / "manifest.json").read_text())["totals"]["failed"] == len(damaged)
    assert Folder(out, {**settings, "threads": 1}).current()[0] == 1  # never started anew
