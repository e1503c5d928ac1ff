"""Train one row of the paper's ablation tables from a common auto-encoder, and measure it on pictures.

    python scripts/ablations.py full --start VQVAE.ckpt --shards data/small --weights WEIGHTS --pictures KODAK --output OUT
    python scripts/ablations.py no_code_prediction ...   # the same words, a command for each row
    python scripts/ablations.py table --output OUT       # BD-rate of all rows against `full`

Every row starts from the same stage-I checkpoint, trains stages II and III with the same seed, steps, pictures
and lambdas, writes its weights file, and codes the pictures to real files at its rate points. Both stages are
measured (OUT/ROW/transform, OUT/ROW/joint). The rows `attention_*` train nothing: they are `full` with another
window at evaluation. A row that was broken off goes on when it is started again.
"""  # noqa: E501

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from words import number_of

from glc.codec.weights.file import read_weights, save_weights
from glc.evaluation.tables import bd_rate
from glc.io.atomic import replacing

ROWS: dict[str, list[str]] = {
    "full": [],
    "indices_map": ["model/variants=indices_map"],
    "factorized": ["model/variants=factorized"],
    "no_code_prediction": ["model/variants=no_code_prediction"],
    "network_code_prediction": ["model/variants=refiner"],
}
WINDOWS: dict[str, int | None] = {"attention_global": None, "attention_64": 64, "attention_16": 16}
PUBLISHED = {
    "indices_map": "indices-map coding",
    "factorized": "factorised hyperprior",
    "no_code_prediction": "without code prediction",
    "network_code_prediction": "code prediction in the network",
    "attention_global": "attention global",
    "attention_64": "attention 64",
    "attention_16": "attention 16",
}
STAGES = ("transform", "joint")


def call(*command: object) -> None:
    """Run a command of this environment; stop at its first failure."""
    words = [sys.executable, *map(str, command)]
    print(" ".join(words), flush=True)
    done = subprocess.run(words, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def measure(weights: Path, arguments: argparse.Namespace, out: Path) -> None:
    """Code the pictures to files and back."""
    call("-m", "glc.launch.evaluate", f"codec={weights}", "testset=folder",
         f"testset.path={arguments.pictures}", f"out={out}",
         f"metrics.weights_dir={arguments.weights}")  # fmt: skip


def train(row: str, arguments: argparse.Namespace) -> None:
    """Train stages II and III of a row, and measure each."""
    start = arguments.start
    for stage in STAGES[: STAGES.index(arguments.until) + 1]:
        run = arguments.output / "runs" / row / stage
        call("-m", "glc.launch.train", "experiment=small", *ROWS[row], f"stage={stage}", f"name={row}",
             f"runs_dir={arguments.output / 'runs'}", "resume=auto", f"init_from={start}", "logger=csv",
             f"data.train={arguments.shards / 'train'}", f"data.val={arguments.shards / 'val'}",
             f"perceptual.weights_dir={arguments.weights}", f"trainer.max_steps={arguments.steps[stage]}",
             f"data.crop={arguments.crop}", f"seed={arguments.seed}",
             *([f"stage.discriminator_from={arguments.start}"] if stage == "joint" else []),
             *arguments.overrides)  # fmt: skip
        start = run / "checkpoints" / "last.ckpt"
        weights = arguments.output / row / f"{stage}.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        call("-m", "glc", "export", start, weights, "--force")
        if stage in arguments.measured:
            measure(weights, arguments, arguments.output / row / stage)


def change_window(description: Any, window: int | None) -> Any:
    """Return an architecture with another window wherever it has one."""
    if isinstance(description, dict):
        return {k: window if k == "window" else change_window(v, window) for k, v in description.items()}
    if isinstance(description, list):
        return [change_window(value, window) for value in description]
    return description


def another_window(row: str, arguments: argparse.Namespace) -> None:
    """Measure `full` with attention in other windows."""
    for stage in arguments.measured:
        full = read_weights(arguments.output / "full" / f"{stage}.safetensors")
        weights = arguments.output / row / f"{stage}.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        described = change_window(full.description, WINDOWS[row])
        save_weights(weights, full.model.state_dict(), described, full.tables, full.rates)
        measure(weights, arguments, arguments.output / row / stage)


def curve(folder: Path, metric: str) -> list[tuple[float, float]]:
    """Return the rate points of an evaluation."""
    points = json.loads((folder / "summary.json").read_text())["points"]
    return sorted((point["bpp"], point[metric]) for point in points)


def table(output: Path, metric: str) -> str:
    """Return the rows' BD-rates against `full` in the same stage, in Markdown, with the published ones."""
    resource = Path(__file__).parents[1] / "src" / "glc" / "evaluation" / "published_rd.json"
    published = json.loads(resource.read_text())["ablations"]["percent"]
    lines = ["| row | bpp | LPIPS | stage II | stage III | paper |", "|---|---|---|---|---|---|"]
    for row in [*ROWS, *WINDOWS]:
        found = {s: output / row / s for s in STAGES if (output / row / s / "summary.json").is_file()}
        if not found:
            continue
        last = curve(list(found.values())[-1], metric)
        cells = [
            row.replace("_", " "),
            " ".join(f"{rate:.4f}" for rate, _ in last),
            " ".join(f"{value:.3f}" for _, value in last),
        ]
        for stage in STAGES:
            if row == "full" or stage not in found:
                cells.append("0 %" if stage in found else "")
                continue
            result = bd_rate(curve(output / "full" / stage, metric), curve(found[stage], metric), metric)
            cells.append(f"{result.percent:+.1f} %" if result.percent is not None else result.note)
        cells.append(f"{published[PUBLISHED[row]]:+.1f} %" if row in PUBLISHED else "0 %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=[*ROWS, *WINDOWS, "table"])
    parser.add_argument("--output", type=Path, required=True, help="folder of all rows")
    parser.add_argument("--start", type=Path, help="stage-I checkpoint that all rows share")
    parser.add_argument("--shards", type=Path, help="folder with train/ and val/, made by glc pack")
    parser.add_argument("--weights", type=Path, help="folder with LPIPS' SqueezeNet and AlexNet")
    parser.add_argument("--pictures", type=Path, help="folder of pictures to measure on")
    parser.add_argument("--steps", type=number_of(STAGES), action="append", default=[], metavar="STAGE=N")
    parser.add_argument(
        "--measured", nargs="+", choices=STAGES, default=STAGES, help="stages to code pictures with (both)"
    )
    parser.add_argument(
        "--until", choices=STAGES, default=STAGES[-1], help="last stage of this call (%(default)s)"
    )
    parser.add_argument("--crop", type=int, default=128, help="side of the training crops (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--metric", default="lpips", help="of the table (%(default)s)")
    parser.add_argument("overrides", nargs="*", help="further settings of the training")
    arguments = parser.parse_args()
    arguments.steps = {"transform": 600, "joint": 600, **dict(arguments.steps)}
    if arguments.row == "table":
        text = table(arguments.output, arguments.metric)
        with replacing(arguments.output / "ablations.md") as partial:
            Path(partial).write_text(text)
        print(text, end="")
        return 0
    needed = (
        ("weights", "pictures") if arguments.row in WINDOWS else ("start", "shards", "weights", "pictures")
    )
    missing = [f"--{name}" for name in needed if getattr(arguments, name) is None]
    if missing:
        parser.error(f"the row {arguments.row} needs {', '.join(missing)}")
    for name in ("output", *needed):
        setattr(arguments, name, getattr(arguments, name).resolve())
    (another_window if arguments.row in WINDOWS else train)(arguments.row, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
