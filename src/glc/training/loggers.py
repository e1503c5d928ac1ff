"""Loggers."""

import csv
import logging
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from glc.io.atomic import replacing
from glc.training.checkpoints import is_first_process

_log = logging.getLogger(__name__)

STEP = "trainer/global_step"
_AT_RATE = re.compile(r"val/(?P<name>.+)/(?P<rate>\d+)")
_CHARTS = ("psnr", "ms_ssim", "lpips_alex")
"""Metrics that are drawn over the rate, where they are measured."""


class _WholeRows(ExperimentWriter):
    """Writes rows as Lightning does, but never empties a file that it has yet to fill again."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        with replacing(path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)


class RowLogger(CSVLogger):
    """Lightning's CSV logger that loses nothing to a kill: each row is written at once.

    Args:
        save_dir: folder of the run.
        name: folder in it.
    """

    def __init__(self, save_dir: str | Path, name: str = "csv") -> None:
        # No version is given: one file for each start, so a continued run adds version_1, and so on.
        super().__init__(save_dir, name, flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the rows."""
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _WholeRows(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]


class RateDistortionLogger(WandbLogger):
    """A W&B logger that makes tables, curves and means of what is validated at several rate points.

    From `val/NAME/K`, K a rate point:

    - `val/NAME`: the mean over the points, one column for each run of a sweep;
    - `rd/points`: a table with a row for each point;
    - `rd/curve_NAME`: PSNR, MS-SSIM and LPIPS over the rate.
    """

    _lmbda: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; it is kept on the disk when the server cannot be reached."""
        try:
            return super().experiment
        except wandb.errors.CommError as error:
            give_up(error, self._wandb_init["dir"])
            self._wandb_init["mode"] = "offline"
            return super().experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the recipe, and say how summaries are made of histories."""
        super().log_hyperparams(params)
        stage = params.get("stage") if isinstance(params, Mapping) else None
        self._lmbda = stage.get("lmbda") if isinstance(stage, Mapping) else None
        # The best is what a sweep is sorted by, the last what a checkpoint holds.
        self.experiment.define_metric("val/loss", step_metric=STEP, summary="min,last")
        self.experiment.define_metric("train/images_per_second", step_metric=STEP, summary="mean")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars, and what follows from those at rate points."""
        points = rate_points(metrics, self._lmbda)
        if "bpp" not in points.get(0, {}):
            super().log_metrics(metrics, step)
            return
        names = [name for name in points[0] if name != "lambda"]
        means = {f"val/{name}": sum(p[name] for p in points.values()) / len(points) for name in names}
        super().log_metrics({**means, **metrics}, step)
        rows = [[k, *point.values()] for k, point in points.items()]
        table = wandb.Table(columns=["rate_point", *points[0]], data=rows)
        made: dict[str, Any] = {"rd/points": table}
        for name in _CHARTS:
            if name in points[0]:
                title = f"{name} over bits per pixel"
                made[f"rd/curve_{name}"] = wandb.plot.line(table, "bpp", name, title=title)
        self.experiment.log(made if step is None else {**made, STEP: step})


def rate_points(metrics: Mapping[str, float], lmbda: Any = None) -> dict[int, dict[str, float]]:
    """Return what is measured at each rate point, in order: names of `val/NAME/K` with their values.

    Args:
        metrics: scalars by their keys.
        lmbda: lambda of the training, one or one per rate point, to go with them; None when not known.
    """
    found: dict[int, dict[str, float]] = {}
    for key, value in metrics.items():
        match = _AT_RATE.fullmatch(key)
        if match:
            found.setdefault(int(match["rate"]), {})[match["name"]] = value
    points = {k: found[k] for k in sorted(found)}
    # A metric that some point lacks has no mean.
    shared = set.intersection(*map(set, points.values())) if points else set()
    values = lmbda if isinstance(lmbda, Sequence) else [lmbda] * len(points)
    for k, point in points.items():
        known = {"lambda": values[k]} if k < len(values) and values[k] is not None else {}
        points[k] = {**known, **{name: point[name] for name in sorted(shared)}}
    return points


def logged_in() -> bool:
    """Say whether W&B has a key: in the environment or kept by `wandb login`."""
    return bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False, verify=False)


def give_up(error: Exception, folder: str | Path) -> None:
    """Warn that W&B cannot be reached and that a run, to be made offline now, is kept below a folder."""
    wandb.teardown(1)  # what serves the run would not let go of its name
    _log.warning(
        "W&B cannot be reached (%s): the run is kept in %s; send it later with `wandb sync`",
        " ".join(str(error).split())[:200],
        Path(folder) / "wandb",
    )


def wandb_logger(
    project: str,
    group: str,
    dir: str | Path,
    runs_dir: str | Path,
    tags: Sequence[str] = (),
    resume: str | None = None,
) -> RateDistortionLogger:
    """Return a W&B logger that never prompts: online when the user is logged in, offline otherwise.

    The run's type is its stage, from the folder's place `NAME/STAGE` below `runs_dir`.

    `WANDB_MODE` in the environment decides when it is set. The run is called after its folder below
    `runs_dir`. Its identity is kept in that folder, so a resumed run continues its W&B run.

    Args:
        project: W&B project.
        group: runs of one group stand together, such as those of a sweep.
        dir: the run's folder.
        runs_dir: the folder of all runs.
        tags: labels.
        resume: not None when the training run is continued.
    """
    folder = Path(dir).resolve()
    root = Path(runs_dir).resolve()
    name = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name
    stage = name.split("/")[1] if "/" in name else None
    mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    folder.mkdir(parents=True, exist_ok=True)
    identity = folder / "wandb-id.txt"
    if is_first_process() and (resume is None or not identity.is_file()):
        identity.write_text(uuid.uuid4().hex[:8])
    return RateDistortionLogger(
        id=identity.read_text() if identity.is_file() else None,
        project=project,
        group=group,
        name=name,
        job_type=stage,
        save_dir=folder,
        tags=list(tags),
        mode=mode,
        settings=wandb.Settings(silent=True, console="off"),
    )
