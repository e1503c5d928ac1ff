"""Kill trainings at random moments, continue them, and compare with trainings that nothing happened to.

    python scripts/killed_training.py --seed 0 --kills 20 --output killed

The tiny model on the photographs that come inside installed packages, all three stages. A process group is
killed (SIGKILL) after a random time, or as soon as it begins to write a checkpoint; now and then the last
checkpoint is damaged as well, as a failing disk would. The same command then continues (`resume=auto`), until
the run's end. Each step's losses and everything in the last checkpoint must then be those of the undisturbed
run, bit by bit. Writes summary.json; exits with 1 when anything differs.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", WANDB_MODE="offline", GLC_OFFLINE="1", TORCH_HOME=os.devnull)

import torch  # noqa: E402 (after the environment)
from hydra import compose, initialize_config_dir  # noqa: E402

from glc.data.pack import pack  # noqa: E402
from glc.data.sources import sample_paths  # noqa: E402
from glc.launch.train import register_resolvers, train  # noqa: E402

STAGES = ("vqvae", "transform", "joint")
PARTS = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "loops")
CALLBACKS = ("CodebookCare", "MovingAverage")
EVERY = 4
"""Steps between checkpoints."""
EPOCH = 10
"""Batches of an epoch, at whose end there is a checkpoint as well."""
KILLS_PER_RUN = 4
# Where the pictures come from differs by stage: a list in memory, shards, shards through worker processes.
LOADING = {
    "vqvae": {"data.cache": "true", "data.num_workers": 0},
    "transform": {"data.cache": "false", "data.num_workers": 0, "data.shuffle": 4},
    "joint": {"data.cache": "false", "data.num_workers": 2, "data.shuffle": 4, "stage.accumulate": 2},
}


def settings(output: Path, name: str, stage: str, steps: int) -> list[str]:
    """Return the overrides of a run: epochs, validations and checkpoints fall on different steps."""
    values: dict[str, Any] = {
        "stage": stage,
        "model": "tiny",
        "model.projected_codebooks": "false",
        "data": "samples",
        "data.train": output / "data" / "train",
        "data.val": output / "data" / "test",
        "data.crop": 64,
        "data.val_crop": 64,
        "data.val_limit": 1,
        "data.epoch_batches": EPOCH,
        "batch": 4,
        "trainer.max_steps": steps,
        "trainer.accelerator": "cpu",
        "trainer.log_every_n_steps": 1,
        "callbacks.last.every_n_steps": EVERY,
        "callbacks.ema.decay": 0.8,
        "callbacks.codebooks.initialize_after": 5,
        "callbacks.codebooks.revive_every": 3,
        "callbacks.panel": "null",
        "callbacks.progress": "null",
        "+trainer.enable_progress_bar": "false",
        "stage.schedule.warmup": 2,
        "stage.optimizer.lr": 1e-3,
        "logger": "csv",
        "metrics": "none",
        "perceptual.required": "false",
        "validate_first": "false",
        "resume": "auto",
        "name": name,
        "runs_dir": output / "runs",
        "dir": output / "runs" / name / stage,
        **LOADING[stage],
    }
    if stage != "transform":
        values["stage.discriminator_start"] = 3
    if stage != "vqvae":
        before = output / "runs" / "whole" / STAGES[STAGES.index(stage) - 1]
        values["init_from"] = before / "checkpoints" / "last.ckpt"
    if stage == "joint":
        first = output / "runs" / "whole" / "vqvae"
        values["stage.discriminator_from"] = first / "checkpoints" / "last.ckpt"
    return [f"{key}={value}" for key, value in values.items()]


def start(overrides: list[str], log: Path) -> int:
    """Train in a process group of its own, forked from this one, which has imported everything; its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        torch.set_num_threads(1)
        register_resolvers()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("train", overrides)
        train(cfg)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def finished(child: int) -> int | None:
    """Return a process's exit status once it has ended, None before."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def run_to_end(overrides: list[str], log: Path) -> float:
    """Train without disturbance; the seconds that it took."""
    began = time.monotonic()
    _, status = os.waitpid(start(overrides, log), 0)
    if status:
        raise SystemExit(f"training failed: see {log}")
    return time.monotonic() - began


def kill_some_time(overrides: list[str], folder: Path, log: Path, seconds: float, rng: random.Random) -> str:
    """Start a training and kill it; say when that was: `moment`, `write`, or `ended` if it was too late."""
    partial = folder / "checkpoints" / ".last.ckpt.part"
    partial.unlink(missing_ok=True)
    child = start(overrides, log)
    during_write = rng.random() < 0.4
    skip, seen = rng.randrange(3), False
    deadline = time.monotonic() + rng.uniform(0.3, max(0.4, seconds))
    while True:
        status = finished(child)
        if status is not None:
            if status:
                raise SystemExit(f"a continued training failed: see {log}")
            return "ended"
        if during_write:
            writing = partial.exists()
            if writing and not seen:
                skip -= 1
            seen = writing
            if writing and skip < 0:
                break
        elif time.monotonic() > deadline:
            break
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.01) if during_write else 0)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "write" if partial.exists() else "moment"


def damage(folder: Path, rng: random.Random) -> bool:
    """Flip a byte in the last checkpoint, or cut it short, where there is one before it."""
    last, previous = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "previous.ckpt"
    if not previous.is_file() or previous.samefile(last):
        return False
    content = bytearray(last.read_bytes())
    if rng.random() < 0.5:
        content[rng.randrange(len(content))] ^= 0x10
    else:
        del content[rng.randrange(len(content)) :]
    last.unlink()  # another file: what a link shows stays as it is
    last.write_bytes(content)
    return True


def losses(folder: Path) -> dict[int, set[str]]:
    """Return every loss that was logged for each step, over all pieces of a run, as printed."""
    found: dict[int, set[str]] = {}
    for path in sorted(folder.glob("csv/version_*/metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get("train/loss"):
                    found.setdefault(int(row["step"]), set()).add(row["train/loss"])
    return found


def differences(a: Any, b: Any, place: str) -> list[str]:
    """Name the places where two nested values differ in any bit."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a.nan_to_num(), b.nan_to_num()) else [place]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{place}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [
            x
            for i, (one, two) in enumerate(zip(a, b, strict=True))
            for x in differences(one, two, f"{place}/{i}")
        ]
    return [] if a == b else [place]


def compare(folder: Path, whole: Path, steps: int, saved: tuple[int, ...]) -> tuple[list[str], int]:
    """Return what is wrong with a continued run, and how many rows of its log are missing.

    Args:
        folder: the continued run.
        whole: the undisturbed one.
        steps: of both.
        saved: periods, in batches, of the checkpoints.
    """
    wrong = []
    expected, found = losses(whole), losses(folder)
    missing = [batch for batch in expected if batch not in found]
    # A row is written right after the checkpoint of its step: a kill between the two costs the row.
    wrong += [f"batch {i} was never logged" for i in missing if all((i + 1) % period for period in saved)]
    wrong += [f"batch {i}: {sorted(found[i])}" for i in found if found[i] != expected.get(i)]
    one, other = (
        torch.load(place / "checkpoints" / "last.ckpt", weights_only=True) for place in (folder, whole)
    )
    if one["global_step"] != steps or other["global_step"] != steps:
        wrong.append(f"ended at step {one['global_step']} and {other['global_step']}, not {steps}")
    for part in PARTS:
        wrong += differences(one[part], other[part], part)
    for name in CALLBACKS:
        wrong += differences(one["callbacks"][name], other["callbacks"][name], name)
    return wrong, len(missing)


def main() -> None:
    """Parse the command line, run, print and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=24, help="steps of each run")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--output", type=Path, required=True, help="folder; what is in it is replaced")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(given.seed)
    output = given.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    for name in ("train", "test"):
        pack(sample_paths(name), output / "data" / name, size=128, workers=1, progress=False)

    report: dict[str, Any] = {
        "seed": given.seed, "steps": given.steps, "kills": 0, "moment": 0, "write": 0, "damaged": 0,
        "runs": 0, "rows_missing": 0, "wrong": [],
    }  # fmt: skip
    log = output / "training.log"
    needed = STAGES[: 1 + max(STAGES.index(stage) for stage in given.stages)]
    seconds = {stage: run_to_end(settings(output, "whole", stage, given.steps), log) for stage in needed}
    for place, stage in enumerate(given.stages):
        # Shares that add up to the number asked for.
        left = given.kills * (place + 1) // len(given.stages) - given.kills * place // len(given.stages)
        while left > 0:
            report["runs"] += 1
            name = f"killed-{report['runs']}"
            overrides = settings(output, name, stage, given.steps)
            folder = output / "runs" / name / stage
            for _ in range(KILLS_PER_RUN):
                when = kill_some_time(overrides, folder, log, seconds[stage], rng)
                if when == "ended":
                    break
                report["kills"] += 1
                report[when] += 1
                left -= 1
                if rng.random() < 0.25 and damage(folder, rng):
                    report["damaged"] += 1
                if left == 0:
                    break
            run_to_end(overrides, log)
            wrong, missing = compare(
                folder,
                output / "runs" / "whole" / stage,
                given.steps,
                (EVERY * int(LOADING[stage].get("stage.accumulate", 1)), EPOCH),
            )
            report["wrong"] += [f"{name} ({stage}): {problem}" for problem in wrong]
            report["rows_missing"] += missing
            print(f"{stage}: {report['kills']} kills so far, {len(wrong)} differences", flush=True)
    (output / "summary.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({**report, "wrong": report["wrong"][:10]}, indent=1))
    if report["wrong"] or report["kills"] < given.kills:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
