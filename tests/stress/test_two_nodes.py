"""Training on two nodes equals two processes on one node, bit for bit.

The short form forks the processes with torchrun's environment. The long form starts each node by its own
torchrun as on a cluster, also in network namespaces with their own addresses (root, Linux, `ip`).
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glc.data.pack import pack
from glc.data.sources import sample_paths
from tests.programs import ROOT, TRAIN, Started
from tests.short_runs import QUIET, arguments, checkpoint, settings
from tests.stress.harness import Stress
from tests.stress.test_killed_training import losses

NETWORK = "10.213.47"
Node = tuple[list[str], dict[str, str]]
"""Command prefix and environment."""


def training(data: Path, runs: Path, name: str, steps: int) -> list[str]:
    """Return the training command without torchrun's words."""
    values: dict[str, Any] = {
        **settings(data / "train", runs, name, "transform", steps),
        "data": "samples",
        "data.val": data / "test",
        "init_from": "none",
        "trainer": "ddp",
        "batch": 8,
        "stage.accumulate": 2,
        "callbacks.progress": "null",
        "callbacks.panel": "null",
        "+trainer.enable_progress_bar": "false",
    }
    del values["data.stride"], values["data.batch_size"], values["data.epoch_batches"]
    return [*TRAIN, *arguments(values)]


def run_all(nodes: list[Node], words: list[str], log: Path) -> None:
    """Run a training command on all nodes at once; end all if one fails."""
    started = []
    with log.open("w") as file:
        for before, more in nodes:
            environment = {**os.environ, **QUIET, "OMP_NUM_THREADS": "1", **more}
            command = [*before, *words]
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file))
        try:
            for process in started:
                assert process.wait(280) == 0, log.read_text()[-4000:]
        finally:
            for process in started:
                process.kill()


@contextlib.contextmanager
def namespaces() -> Iterator[list[str]]:
    """Create two connected network namespaces; yield their names."""
    made: list[str] = []

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        for node in range(2):
            ip("netns", "add", f"glc-node-{node}")
            made.append(f"glc-node-{node}")
        ends = [f"glc-veth-{node}" for node in range(2)]
        ip("link", "add", ends[0], "netns", made[0], "type", "veth", "peer", ends[1], "netns", made[1])
        for node, name in enumerate(made):
            ip("-n", name, "addr", "add", f"{NETWORK}.{node + 1}/24", "dev", ends[node])
            ip("-n", name, "link", "set", ends[node], "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        for name in made:
            ip("netns", "del", name)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def fork_all(per_node: int, words: list[str]) -> None:
    """Run a training command in two processes, `per_node` on each node, in torchrun's environment."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "forked"}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": str(per_node), "GROUP_WORLD_SIZE": str(2 // per_node)}
    started = []
    for rank in range(2):
        ranks = {"RANK": rank, "LOCAL_RANK": rank % per_node, "GROUP_RANK": rank // per_node}
        environment = {**QUIET, **shared, **{key: str(value) for key, value in ranks.items()}}
        started.append(Started(words, environment=environment))
    for done in [process.finish() for process in started]:
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("where", ["forked", "local", "namespaces"])
def test_two_nodes_train_like_one_node(stress: Stress, where: str) -> None:
    if where == "namespaces" and not (os.geteuid() == 0 and shutil.which("ip")):
        pytest.skip("needs root and ip")
    if where != "forked" and not stress.long:
        pytest.skip("--long starts the nodes by torchrun")
    assert stress.output is not None
    output, steps = stress.output / where, stress.count(2, 4)
    for name in ("train", "test"):
        pack(sample_paths(name), output / "data" / name, size=128, workers=1, progress=False)
    one, two = (training(output / "data", output / "runs", name, steps) for name in ("one-node", "two-nodes"))
    if where == "forked":
        fork_all(2, one)
        fork_all(1, two)
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        run_all([([*torchrun, "--standalone", "--nproc-per-node=2"], {})], one, output / "one.log")
        with namespaces() if where == "namespaces" else contextlib.nullcontext([]) as names:
            address = f"{NETWORK}.1" if names else "127.0.0.1"
            port, nodes = free_port(), list[Node]()
            for node in range(2):
                inside = ["ip", "netns", "exec", names[node]] if names else []
                words = [*torchrun, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}"]
                words += [f"--master-addr={address}", f"--master-port={port}"]
                nodes.append(([*inside, *words], {"GLOO_SOCKET_IFNAME": f"glc-veth-{node}"} if names else {}))
            run_all(nodes, two, output / "two.log")
    # All processes must use the same run folder.
    assert sorted(path.name for path in (output / "runs").iterdir()) == ["one-node", "two-nodes"]
    folders = [output / "runs" / name / "transform" for name in ("one-node", "two-nodes")]
    first, second = map(losses, folders)
    assert first == second
    assert len(first) == 2 * steps
    states = [checkpoint(folder)["state_dict"] for folder in folders]
    assert not [key for key, value in states[0].items() if not torch.equal(value, states[1][key])]
