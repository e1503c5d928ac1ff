"""Train the stages of a plan, resuming unfinished runs, and export and evaluate the results.

    python scripts/run_stages.py PLAN --output OUT [--minutes N] [--only PATTERN] [OVERRIDE ...]

PLAN is the name of a file in scripts/plans or the path of a .yaml file; `PLAN --help` lists its inputs. Each
row of a plan trains its stages in order, in OUT/ROW/STAGE. `--minutes` is shared among the runs that can
start; each call resumes unfinished runs. `--only` selects runs by a pattern of row, stage or ROW/STAGE;
`joint:trainer.max_steps=5000` is an override for the runs of such a pattern. Exit code 0: done; 2: not
started; 3: unfinished, run the command again.
"""

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image

from glc.codec.weights.file import read_weights, save_weights
from glc.errors import WeightsError
from glc.training.checkpoints import open_last

ROOT = Path(__file__).resolve().parents[1]
TRAIN, EVALUATE, EXPORT = ("-m", "src.train"), ("-m", "src.evaluate"), ("-m", "glc", "export")
MORE = 3
LEAST_MINUTES = 0.5
"""Least time to start a run with: start-up would take most of a shorter one."""


class Run(NamedTuple):
    """A stage of a row, with its export and evaluation."""

    row: str
    stage: str
    settings: list[str]
    after: "Run | None"
    """The run of the same row that it starts from."""
    export: Path | None
    options: list[str]
    evaluate: list[str]

    def is_one_of(self, patterns: Sequence[str]) -> bool:
        """Whether a pattern matches its row, its stage or ROW/STAGE."""
        names = (self.row, self.stage, f"{self.row}/{self.stage}")
        return any(fnmatch(name, pattern) for name in names for pattern in patterns)


def read_plan(name: str) -> dict[str, Any]:
    """Return a plan of scripts/plans, or of a file.

    Raises:
        ValueError: the file does not exist.
    """
    path = Path(name) if name.endswith(".yaml") else ROOT / "scripts" / "plans" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(plan.stem for plan in (ROOT / "scripts" / "plans").glob("*.yaml")))
        raise ValueError(f"{name}: no such plan; give one of {known} or a .yaml file")
    plan: dict[str, Any] = yaml.safe_load(path.read_text())
    return plan


def runs_of(plan: Mapping[str, Any], values: Mapping[str, Any], device: str) -> list[Run]:
    """Return the runs of a plan with their settings, those of a row in order."""
    shared = [*plan.get("settings", []), *plan.get("cuda" if device == "cuda" else "cpu", [])]
    accelerator = {"cuda": ["trainer.accelerator=gpu"], "cpu": ["trainer.accelerator=cpu"]}.get(device, [])
    made: list[Run] = []
    for named, stages in plan["rows"].items():
        row, after = named.format_map(values), None
        for stage, own in stages.items():
            about = plan.get("stages", {}).get(stage, {})
            given = {**values, "row": row, "stage": stage}
            settings = [*accelerator, *expand([*shared, *about.get("settings", []), *own], given)]
            export = expand([about["export"]], given)[0] if "export" in about else None
            options, evaluate = (expand(about.get(key, []), given) for key in ("options", "evaluate"))
            after = Run(row, stage, settings, after, export and Path(export), options, evaluate)
            made.append(after)
    return made


def expand(words: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Substitute inputs in words, and drop the words whose input was not given."""
    absent = [f"{{{name}}}" for name, value in values.items() if value is None]
    return [word.format_map(values) for word in words if not any(name in word for name in absent)]


def steps_of(run: Run, output: Path, overrides: Sequence[str]) -> tuple[int, float]:
    """Return the finished and the planned steps of a run; 0 finished without a checkpoint.

    If the last checkpoint is corrupt, the one before it counts.
    """
    last = open_last(output / run.row / run.stage / "checkpoints")
    words = [word for word in (*run.settings, *overrides) if word.startswith("trainer.max_steps=")]
    planned = int(words[-1].partition("=")[2]) if words else math.inf
    if last is None:
        return 0, planned
    return last.step, planned if words else int(last.settings["trainer"]["max_steps"])


def call(*command: object) -> None:
    """Run a Python command; exit with its status if that is not 0."""
    words = [sys.executable, *map(str, command)]
    print(" ".join(words), flush=True)
    done = subprocess.run(words, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def train(runs: Sequence[Run], options: argparse.Namespace) -> int:
    """Train until the time limit or the end of all runs; return the exit status."""
    end = time.monotonic() + 60 * options.minutes

    def own(run: Run) -> list[str]:
        split = [word.partition("=")[0].rpartition(":")[0] for word in options.overrides]
        return [
            word.removeprefix(f"{target}:")
            for word, target in zip(options.overrides, split, strict=True)
            if not target or run.is_one_of([target])
        ]

    def done(run: Run) -> bool:
        steps, planned = steps_of(run, options.output, own(run))
        return steps >= planned

    waiting = [run for run in runs if not done(run)]
    for run in [run for run in runs if run not in waiting]:
        finish(run, options, trained=False)
    while ready := [run for run in waiting if run.after not in runs or done(run.after)]:
        minutes = (end - time.monotonic()) / 60 / len(ready)
        if minutes < LEAST_MINUTES:
            return MORE
        run = ready[0]
        waiting.remove(run)
        limit = [] if math.isinf(minutes) else [f"max_minutes={minutes:.2f}"]
        words = [f"stage={run.stage}", f"name={run.row}", f"runs_dir={options.output}", "resume=auto", *limit]
        call(*TRAIN, *words, *run.settings, *own(run))
        steps, planned = steps_of(run, options.output, own(run))
        print(f"{run.row}/{run.stage}: {steps} of {planned} steps", flush=True)
        finish(run, options, trained=True, complete=steps >= planned)
    return 0 if all(map(done, runs)) else MORE


def finish(run: Run, options: argparse.Namespace, trained: bool, complete: bool = True) -> None:
    """Export a run, finished or not; evaluate it if it is complete."""
    if run.export is None:
        return
    if trained or not run.export.is_file():
        checkpoint = options.output / run.row / run.stage / "checkpoints" / "last.ckpt"
        call(*EXPORT, checkpoint, run.export, "--force", *run.options)
    if complete:
        evaluate(run, run.export, options)


def evaluate(run: Run, weights: Path, options: argparse.Namespace) -> None:
    """Evaluate a weights file on the plan's images, unless the plan has none or results exist."""
    out = options.output / "results" / weights.stem
    if run.evaluate and run.is_one_of(options.evaluate) and not (out / "summary.json").is_file():
        call(*EVALUATE, f"codec={weights}", f"out={out}", *run.evaluate)


def change_window(description: Any, window: int | None) -> Any:
    """Return an architecture with another attention window in every module that has one."""
    if isinstance(description, dict):
        return {k: window if k == "window" else change_window(v, window) for k, v in description.items()}
    if isinstance(description, list):
        return [change_window(value, window) for value in description]
    return description


def measure_windows(windows: Mapping[str, Any], runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Evaluate the runs of the row `of` with other attention windows."""
    for row in [name for name in windows if name != "of"]:
        for run in runs:
            changed = run._replace(row=row)
            if run.row != windows["of"] or not run.export or not changed.is_one_of(options.only):
                continue
            source = read_weights(run.export)
            weights = options.output / f"{row}-{run.stage}.safetensors"
            described = change_window(source.description, windows[row])
            save_weights(weights, source.model.state_dict(), described, source.tables, source.rates)
            evaluate(changed, weights, options)


def make_mosaic(path: Path, side: int = 384, seed: int = 0) -> Path:
    """Write an image of coloured tiles with dark joints, a function of the seed; return its path."""
    random = np.random.default_rng(seed)
    seeds = random.uniform(0, side, (420, 2))
    colours = np.array([[196, 60, 38], [232, 168, 56], [28, 92, 122], [240, 226, 196], [66, 122, 84]])
    tints = colours[random.integers(0, len(colours), len(seeds))] + random.normal(0, 14, (len(seeds), 3))
    rows, columns = np.mgrid[:side, :side]
    places = np.stack([rows, columns], -1).reshape(-1, 1, 2)
    nearest, joint = np.empty(side * side, np.int64), np.empty(side * side, bool)
    for start in range(0, side * side, 8192):
        distance = np.sqrt(((places[start : start + 8192] - seeds) ** 2).sum(-1))
        nearest[start : start + 8192] = distance.argmin(1)
        joint[start : start + 8192] = np.ptp(np.partition(distance, 1, 1)[:, :2], 1) < 2.5
    image = np.where(joint[:, None], [34, 28, 26], tints[nearest])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.clip(0, 255).astype(np.uint8).reshape(side, side, 3)).save(path)
    return path


def parse(plan: Mapping[str, Any], words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; the plan's inputs are options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", help="name in scripts/plans, or path of a .yaml file")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for runs, weights files and results"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="time limit of this call; default: none"
    )
    parser.add_argument("--only", action="append", metavar="PATTERN", help="runs to train; default: all")
    parser.add_argument(
        "--evaluate", action="append", metavar="PATTERN", help="runs to evaluate; default: all"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    for name, about in plan["inputs"].items():
        given = {"help": about, "required": True} if isinstance(about, str) else about
        parser.add_argument(f"--{name}", **given)
    parser.add_argument("overrides", nargs="*", help="overrides of the training configuration")
    options = parser.parse_intermixed_args(words)
    options.only, options.evaluate = options.only or ["*"], options.evaluate or ["*"]
    options.output = options.output.resolve()
    if options.device == "auto" and torch.cuda.is_available():
        options.device = "cuda"
    return options


def inputs_of(plan: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return the values for a plan's placeholders: inputs with absolute paths, and `NAME_name`, the stem."""
    values: dict[str, Any] = {"output": options.output}
    for name in plan["inputs"]:
        value = getattr(options, name)
        if name == "style" and value == "mosaic":
            value = options.output / "mosaic.png"
            if not value.is_file():
                make_mosaic(value)
        if value is not None and Path(value).exists():
            value = str(Path(value).resolve())
        values |= {name: value, f"{name}_name": None if value is None else Path(value).stem}
    return values


def main(words: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    words = sys.argv[1:] if words is None else words
    try:
        plan = read_plan(words[0] if words else "")
        options = parse(plan, words)
        runs = runs_of(plan, inputs_of(plan, options), options.device)
        status = train([run for run in runs if run.is_one_of(options.only)], options)
        if status == 0 and "windows" in plan:
            measure_windows(plan["windows"], runs, options)
    except (OSError, ValueError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
