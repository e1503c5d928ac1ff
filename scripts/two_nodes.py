"""Train on two nodes with addresses of their own, made of network namespaces, and compare with one node.

    python scripts/two_nodes.py --output nodes              (as root, on Linux with `ip`)
    python scripts/two_nodes.py --output nodes --local      (two nodes at one address, for anyone)

Each node is started as on a cluster, by its own torchrun with its own number. Stage II of the tiny model
trains for a few steps on the photographs that come inside installed packages. Losses and weights must be
those of two processes of one node, bit by bit. Writes summary.json; exits with 1 when anything differs.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from glc.data.pack import pack
from glc.data.sources import sample_paths

ROOT = Path(__file__).resolve().parents[1]
NETWORK = "10.213.47"
PORT = 29517
QUIET = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "GLC_OFFLINE": "1", "TORCH_HOME": os.devnull}


def training(output: Path, name: str, steps: int) -> list[str]:
    """Return the words after torchrun's own."""
    values: dict[str, Any] = {
        "stage": "transform",
        "init_from": "none",
        "trainer": "torchrun",
        "trainer.accelerator": "cpu",
        "trainer.max_steps": steps,
        "trainer.log_every_n_steps": 1,
        "model": "tiny",
        "data": "samples",
        "data.train": output / "data" / "train",
        "data.val": output / "data" / "test",
        "data.crop": 64,
        "data.val_crop": 64,
        "batch": 8,
        "stage.accumulate": 2,
        "logger": "csv",
        "metrics": "none",
        "perceptual.required": "false",
        "validate_first": "false",
        "callbacks.progress": "null",
        "callbacks.panel": "null",
        "+trainer.enable_progress_bar": "false",
        "name": name,
        "runs_dir": output / "runs",
    }
    return ["-m", "glc.launch.train", *(f"{key}={value}" for key, value in values.items())]


def run_all(commands: list[tuple[list[str], dict[str, str]]], output: Path, seconds: int = 580) -> None:
    """Run commands at the same time, and end all when one fails."""
    started = []
    for i, (words, more) in enumerate(commands):
        log = (output / f"node-{i}.log").open("a")
        environment = {**os.environ, **QUIET, **more}
        started.append(
            subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        )
    try:
        for i, process in enumerate(started):
            if process.wait(seconds):
                raise SystemExit(f"node {i} failed: see {output / f'node-{i}.log'}")
    finally:
        for process in started:
            process.kill()


def ip(*words: str) -> None:
    """Call `ip`."""
    subprocess.run(["ip", *words], check=True)


def nodes(output: Path, name: str, steps: int, local: bool) -> list[tuple[list[str], dict[str, str]]]:
    """Return the command and the environment of each of two nodes."""
    address = "127.0.0.1" if local else f"{NETWORK}.1"
    found = []
    for node in range(2):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        torchrun += [f"--node-rank={node}", f"--master-addr={address}", f"--master-port={PORT}"]
        inside = [] if local else ["ip", "netns", "exec", f"glc-node-{node}"]
        more = {} if local else {"GLOO_SOCKET_IFNAME": f"glc-veth-{node}"}
        found.append(([*inside, *torchrun, *training(output, name, steps)], more))
    return found


def losses(folder: Path) -> list[str]:
    """Return what was logged for each batch, as printed."""
    with (folder / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")]


def main() -> None:
    """Parse the command line, run, print and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--local", action="store_true", help="no namespaces: both nodes at 127.0.0.1")
    parser.add_argument("--output", type=Path, required=True, help="folder; what is in it is replaced")
    given = parser.parse_args()
    output = given.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    for name in ("train", "test"):
        pack(sample_paths(name), output / "data" / name, size=128, workers=1, progress=False)
    standalone = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run_all([([*standalone, *training(output, "one-node", given.steps)], {})], output)
    made = []
    try:
        if not given.local:
            for node in range(2):
                ip("netns", "add", f"glc-node-{node}")
                made.append(f"glc-node-{node}")
            ip(
                "link",
                "add",
                "glc-veth-0",
                "netns",
                made[0],
                "type",
                "veth",
                "peer",
                "glc-veth-1",
                "netns",
                made[1],
            )
            for node, name in enumerate(made):
                ip("-n", name, "addr", "add", f"{NETWORK}.{node + 1}/24", "dev", f"glc-veth-{node}")
                ip("-n", name, "link", "set", f"glc-veth-{node}", "up")
                ip("-n", name, "link", "set", "lo", "up")
        run_all(nodes(output, "two-nodes", given.steps, given.local), output)
    finally:
        for name in made:
            ip("netns", "del", name)
    folders = [output / "runs" / name / "transform" for name in ("one-node", "two-nodes")]
    one, two = (losses(folder) for folder in folders)
    wrong = [f"batch {i}: {a} and {b}" for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
    if len(one) != len(two) or len(one) != 2 * given.steps:
        wrong.append(f"{len(one)} and {len(two)} batches were logged, not {2 * given.steps}")
    states = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in folders]
    wrong += [key for key, value in states[0].items() if not torch.equal(value, states[1][key])]
    runs = sorted(path.name for path in (output / "runs").iterdir())
    if runs != ["one-node", "two-nodes"]:
        wrong.append(f"runs: {runs}")  # every process must have found the same name
    report = {"namespaces": not given.local, "steps": given.steps, "losses": two, "wrong": wrong}
    (output / "summary.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
