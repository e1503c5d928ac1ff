"""What runs start from and make, as artifacts of W&B: training runs, exports and evaluations."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import wandb
from omegaconf import DictConfig, ListConfig

from glc.codec.convert.read import Source
from glc.codec.weights.labels import read_header
from glc.io.checkpoint import Checkpoint, open_checkpoint
from glc.launch.schema import is_ours
from glc.launch.start import Start
from glc.training import artifacts
from glc.training.wandb_run import give_up, mode, with_variables


def inputs(cfg: DictConfig, start: Start) -> list[artifacts.File]:
    """Return what a training is made from: packed sets, checkpoints, codecs."""
    found: list[artifacts.File] = []
    if is_ours(cfg.data.get("_target_")):
        given = (cfg.data.get(key) for key in ("train", "val"))
        names = [name for value in given for name in (value if isinstance(value, ListConfig) else [value])]
        # Others are data sets of the Hugging Face hub.
        found += artifacts.packed_sets([name for name in names if isinstance(name, str)])
    file: Checkpoint | Source | None
    for file in (start.resume, *start.sources, start.discriminator):
        opened = file.checkpoint or file if isinstance(file, Source) else file
        if isinstance(opened, Checkpoint):
            found.append(artifacts.checkpoint(opened.path, opened.settings, opened.step))
        elif opened is not None:
            found.append(artifacts.codec(opened.path, opened.metadata.get("fingerprint")))
    if start.codec is not None and Path(start.codec.source).is_file():
        found.append(artifacts.codec(Path(start.codec.source), start.codec.fingerprint))
    return list({entry.files: entry for entry in found}.values())


@contextmanager
def started(folder: Path, **options: Any) -> Iterator[Any]:
    """Start a W&B run that never prompts, offline if the server cannot be reached; finish it in any case.

    Args:
        folder: for its local files.
        **options: of `wandb.init`; environment variables of W&B overrule them.
    """
    quiet = {"dir": str(folder), "settings": wandb.Settings(silent=True, console="off")}
    begin = partial(wandb.init, **with_variables({**options, **quiet}))
    try:
        run = begin(mode=mode())
    except wandb.errors.CommError as error:
        give_up(error, folder)
        run = begin(mode="offline")
    code = 1
    try:
        yield run
        code = 0
    finally:
        run.finish(exit_code=code)


def fingerprint(weights: Path) -> str | None:
    """Return the fingerprint in the header of a weights file."""
    return read_header(weights).metadata.get("fingerprint")


def log_export(checkpoint: Path, destination: Path, project: str) -> None:
    """Log an export: a run that uses the checkpoint and makes the codec's artifact, with its card.

    The card is the text file beside the weights file, `NAME.md`, if there is one.
    """
    opened = open_checkpoint(checkpoint)
    name = f"export {destination.stem}"
    with started(destination.parent, project=project, job_type="export", name=name) as run:
        artifacts.use(run, artifacts.checkpoint(opened.path, opened.settings, opened.step))
        made = artifacts.codec(destination, fingerprint(destination))
        run.log_artifact(artifacts.artifact(made))


def log_evaluation(
    summary: Mapping[str, Any], out: Path, project: str, weights: Path | None = None, lineage: bool = True
) -> None:
    """Log an evaluation's points as a table and each point's metrics as the run's summary, `LABEL/METRIC`.

    The W&B run is always finished, with exit code 1 if logging failed.

    Args:
        summary: of the evaluation.
        out: its folder.
        project: W&B project.
        weights: the codec's weights file; None for other codecs.
        lineage: log the codec that is used and the results as artifacts.
    """
    name = f"{summary['codec']['name']} on {summary['data']['name']}"
    options = {"group": f"evaluation {summary['data']['name']}", "name": name, "job_type": "evaluation"}
    config = {key: summary[key] for key in ("codec", "data", "protocol", "seed", "versions")}
    with started(out, project=project, config=config, **options) as run:
        if weights is not None and lineage:
            artifacts.use(run, artifacts.codec(weights, fingerprint(weights)))
        points = [{**point, "setting": point["label"]} for point in summary["points"]]
        columns = list(dict.fromkeys(key for point in points for key in point))
        rows = [[point.get(column) for column in columns] for point in points]
        run.log({"points": wandb.Table(columns=columns, data=rows)})
        for point in points:
            values = {f"{point['label']}/{key}": value for key, value in point.items()}
            run.summary.update({key: value for key, value in values.items() if not isinstance(value, str)})
        run.summary.update({"images": summary["images"], "failed": len(summary["failed"])})
        if lineage:
            result = artifacts.File("evaluation", artifacts.valid_name(name), (out / "summary.json",))
            run.log_artifact(artifacts.artifact(result))
