"""Runs of all stages logged to W&B offline, among them three that an agent of a sweep started."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import yaml
from wandb import wandb_agent

from glc.data.pack import pack
from tests.programs import ROOT, start
from tests.short_runs import QUIET, arguments, run, settings, stand_in_weights, write_images
from tests.wandb_file import OfflineRun, read_finished_run

SWEEPS = ROOT / "conf" / "sweep" / "wandb"
POINTS = (
    {"stage.lmbda": 0.5, "stage.optimizer.lr": 1e-4},
    {"stage.lmbda": 1.0, "stage.optimizer.lr": 2.5e-05},
    {"stage.lmbda": 2.0, "stage.optimizer.lr": 1e-4},
)
"""Parameters of the agent's runs."""


class Command(NamedTuple):
    """What an agent starts."""

    words: list[str]
    environment: dict[str, str]


def agent_command(sweep: Path, run_id: str, values: Mapping[str, Any], folder: Path) -> Command:
    """Return the command and the environment in which W&B's own agent starts a run of a sweep's yaml file.

    Args:
        sweep: the yaml file.
        run_id: the run's id, which the server chooses.
        values: the parameters, which the server chooses.
        folder: working directory of the agent.
    """
    found: list[Command] = []

    def started(command: list[str], env: dict[str, str], **options: Any) -> Any:
        found.append(Command(command, env))
        return type("Process", (), {})()

    folder.mkdir(parents=True, exist_ok=True)
    with patch.dict(os.environ), patch.object(wandb_agent, "AgentProcess", started):
        os.environ["WANDB_SWEEP_ID"] = "sweep123"  # `wandb agent` sets it
        os.environ["WANDB_PROJECT"] = "mine"  # from ENTITY/PROJECT/SWEEP
        os.environ["WANDB_DIR"] = str(folder)  # else the agent sets its working directory
        agent = wandb_agent.Agent(None, None, sweep_id="sweep123")
        agent._sweep_command = yaml.safe_load(sweep.read_text())["command"]
        args = {key: {"value": value} for key, value in values.items()}
        agent._command_run({"run_id": run_id, "args": args, "program": "glc"})
    return found[0]


class Tracked(NamedTuple):
    """Folders of runs."""

    base: Path
    vqvae: Path
    joint: Path
    agent: list[Path]
    """Runs of the agent, one per entry of `POINTS`."""
    more: dict[str, str]
    """Overrides of all runs."""


def file_of(folder: Path, part: int = 0) -> Path:
    """Return a part of a run's W&B files, in the order of their starts."""
    files = folder.glob("wandb/offline-run-*/run-*.wandb")
    return sorted(files, key=lambda path: path.stat().st_mtime_ns)[part]


def content(folder: Path, part: int = 0) -> OfflineRun:
    """Read a part of a run."""
    return read_finished_run(file_of(folder, part))


def agent_file(base: Path, run_id: str) -> Path:
    """Return the W&B file of a run of the agent, which is below the agent's folder."""
    (file,) = base.glob(f"agent/wandb/offline-run-*/run-{run_id}.wandb")
    return file


def start_agent_run(tracked_base: Path, number: int, more: Mapping[str, str], **changes: str) -> Any:
    """Start a run of `POINTS` as the agent does."""
    identity = f"agentrun{number}"
    command = agent_command(SWEEPS / "grid.yaml", identity, POINTS[number], tracked_base / "agent")
    words = command.words[command.words.index("python") + 1 :]
    given = {**more, "name": "all", "init_from": str(tracked_base / "runs/all/vqvae"), **changes}
    kept = [word for word in words if word.partition("=")[0] not in given]
    return start(
        [*kept, *arguments(given)], environment={**command.environment, **QUIET, **caches(tracked_base)}
    )


def caches(base: Path) -> dict[str, str]:
    """Return variables that keep W&B's copies of files below a folder."""
    return {"WANDB_DATA_DIR": str(base / "staged"), "WANDB_CACHE_DIR": str(base / "cache")}


@functools.cache
def tracked_runs(base: Path) -> Tracked:
    """Train stage I, three runs of stage II as an agent, and stage III; tiny, for two steps each."""
    images = write_images(base / "images")
    pack([images], base / "packed", progress=False, workers=1)
    runs = base / "runs"
    more: dict[str, Any] = {
        "data": "shards",
        "data.train": str(base / "packed"),
        "data.val": str(base / "packed"),
        "data.val_crop": 192,
        "perceptual.net": "squeeze",
        "perceptual.weights_dir": str(stand_in_weights(base / "weights")),
        "metrics": "default",
        "data.val_limit": 1,
        "stage.discriminator_start": 0,
        "stage.validate_files": 1,
        "logger": "[default,tensorboard]",
    }

    def values(stage: str) -> dict[str, Any]:
        known = {**settings(images, runs, "all", stage, steps=2), **more}
        left_out = {"vqvae": "stage.validate_files", "transform": "stage.discriminator_start"}
        return {key: value for key, value in known.items() if key != left_out.get(stage)}

    with patch.dict(os.environ, caches(base)):
        first = run(values("vqvae"))
        common = {key: str(value) for key, value in values("transform").items() if key != "stage"}
        agent = []
        for number in range(len(POINTS)):
            done = start_agent_run(base, number, common)
            assert done.returncode == 0, done.stdout + done.stderr
            agent.append(runs / "all" / "transform" / f"agentrun{number}")
        last = run({**values("joint"), "init_from": str(agent[0])})
    return Tracked(base, first, last, agent, common)
