"""A Ray cluster of two nodes on this machine: two raylets with a CPU and a store of objects each."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Start a cluster, which `--engine ray` joins by RAY_ADDRESS."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Workers find the same code as this process.
        patch.setenv(
            "PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        )
        patch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
        node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            cluster.add_node(**node)
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
        finally:
            cluster.shutdown()


def raylet(node: Any) -> int:
    """Return the process id of a node's raylet."""
    return int(node.all_processes["raylet"][0].process.pid)


def busy_workers(cluster: Any) -> list[int]:
    """Return the processes that work on an item (Linux; none elsewhere)."""
    found = []
    for node in cluster.list_all_nodes():
        with suppress(OSError):
            children = Path(f"/proc/{raylet(node)}/task/{raylet(node)}/children").read_text().split()
            found += [int(p) for p in children if b"_ray_run" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return found


def kill(pid: int) -> None:
    """Kill a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
