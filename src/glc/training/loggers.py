"""Loggers: CSV, W&B, TensorBoard and MLflow."""

import csv
import json
import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image

from glc.errors import SettingError
from glc.io.atomic import replacing
from glc.training.checkpoints import is_first_process
from glc.training.wandb_run import give_up, identity, mode, not_uploaded, with_variables

_log = logging.getLogger(__name__)

STEP = "trainer/global_step"
HISTOGRAMS = "histograms.jsonl"
"""File beside a CSV file: an object with `step`, `name`, `counts` and `edges` per line."""
_AT_RATE = re.compile(r"val/(?P<name>.+)/(?P<rate>\d+)")
_CHARTS = ("psnr", "ms_ssim", "lpips_alex")
"""Metrics plotted over the rate, where they are measured."""


class _WholeRows(ExperimentWriter):
    """Write rows as Lightning does, but replace the file atomically when its header changes."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        with replacing(path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)


class LogFirstStep(L.Callback):
    """Log the first step of a run too: the trainer begins at the end of the first interval."""

    def __init__(self) -> None:
        self._every = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log each batch of the first step, unless nothing is to be logged."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step == 0 and every:
            self._every, trainer.log_every_n_steps = every, 1  # type: ignore[attr-defined]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Return to the interval after the first step."""
        if self._every and trainer.global_step:
            trainer.log_every_n_steps, self._every = self._every, 0  # type: ignore[attr-defined]


class RowLogger(CSVLogger):
    """Lightning's CSV logger, but each row is written at once: a killed run loses nothing.

    Args:
        save_dir: folder of the run.
        name: folder in it.
    """

    def __init__(self, save_dir: str | Path, name: str = "csv") -> None:
        # Without a version there is one file per start: a resumed run adds version_1, and so on.
        super().__init__(save_dir, name, flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the rows."""
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _WholeRows(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]


class RateDistortionLogger(WandbLogger):
    """A W&B logger that adds tables, curves and means for metrics validated at several rate points.

    From `val/NAME/K`, K a rate point:

    - `val/NAME`: the mean over the points, one column per run of a sweep;
    - `rd/points`: a table with one row per point;
    - `rd/curve_NAME`: PSNR, MS-SSIM and LPIPS over the rate.
    """

    _lmbda: Any = None
    artifacts: bool = False
    upload_mb: float = 0
    """See `wandb_logger`."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; stored locally if the server cannot be reached."""
        try:
            return super().experiment
        except wandb.errors.CommError as error:
            give_up(error, self._wandb_init.get("dir", "."))
            self._wandb_init["mode"] = "offline"
            return super().experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the configuration, and define the summaries of metrics."""
        super().log_hyperparams(params)
        stage = params.get("stage") if isinstance(params, Mapping) else None
        self._lmbda = stage.get("lmbda") if isinstance(stage, Mapping) else None
        # Sweeps are sorted by the minimum; a checkpoint has the last value.
        self.experiment.define_metric("val/loss", step_metric=STEP, summary="min,last")
        self.experiment.define_metric("train/images_per_second", step_metric=STEP, summary="mean")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars, with means, table and curves of those at rate points."""
        points = rate_points(metrics, self._lmbda)
        if "bpp" not in points.get(0, {}):
            super().log_metrics(metrics, step)
            return
        super().log_metrics(with_means(metrics), step)
        rows = [[k, *point.values()] for k, point in points.items()]
        table = wandb.Table(columns=["rate_point", *points[0]], data=rows)
        made: dict[str, Any] = {"rd/points": table}
        for name in _CHARTS:
            if name in points[0]:
                title = f"{name} over bits per pixel"
                made[f"rd/curve_{name}"] = wandb.plot.line(table, "bpp", name, title=title)
        self.experiment.log(made if step is None else {**made, STEP: step})


def rate_points(metrics: Mapping[str, float], lmbda: Any = None) -> dict[int, dict[str, float]]:
    """Return the metrics at each rate point, in order: NAME and value of each `val/NAME/K`.

    Args:
        metrics: scalars by key.
        lmbda: lambda of the training run, one value or one per rate point, to add; None if unknown.
    """
    found: dict[int, dict[str, float]] = {}
    for key, value in metrics.items():
        match = _AT_RATE.fullmatch(key)
        if match:
            found.setdefault(int(match["rate"]), {})[match["name"]] = value
    points = {k: found[k] for k in sorted(found)}
    # Only metrics that all points have: others have no mean.
    shared = set.intersection(*map(set, points.values())) if points else set()
    values = lmbda if isinstance(lmbda, Sequence) else [lmbda] * len(points)
    for k, point in points.items():
        known = {"lambda": values[k]} if k < len(values) and values[k] is not None else {}
        points[k] = {**known, **{name: point[name] for name in sorted(shared)}}
    return points


def wandb_logger(
    project: str,
    group: str,
    dir: str | Path,
    runs_dir: str | Path,
    tags: Sequence[str] = (),
    resume: str | None = None,
    artifacts: bool = True,
    upload_mb: float = 100,
    job_type: str | None = None,
) -> RateDistortionLogger:
    """Return a W&B logger that never prompts: online when the user is logged in, offline otherwise.

    Environment variables of W&B override this and all arguments. The run is named after its folder below
    `runs_dir`, such as `NAME/STAGE`. Its id is stored in that folder, so a resumed run continues its W&B run;
    `wandb sync` uploads the parts of an offline run as one history, because they are resumable ("allow").

    Args:
        project: W&B project.
        group: W&B group, such as a sweep.
        dir: the run's folder.
        runs_dir: the folder of all runs.
        tags: W&B tags.
        resume: not None if the training run is resumed.
        artifacts: log what the run starts from and makes as artifacts (`glc.training.artifacts`).
        upload_mb: megabytes above which a file of an artifact is referenced by its path, not uploaded.
        job_type: W&B job type, the stage.
    """
    folder = Path(dir).resolve()
    options: dict[str, Any] = {
        "project": project,
        "group": group,
        "name": _name(folder, runs_dir),
        "job_type": job_type,
        "tags": list(tags),
        "resume": "allow",
        "dir": str(folder),
        "mode": mode(),
        "settings": wandb.Settings(silent=True, console="off"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "wandb-id.txt"
    if is_first_process():
        options["id"] = identity(file, resume is not None)
        waiting = not_uploaded(folder, options["id"]) if options["mode"] == "online" else []
        if waiting:
            _log.warning(
                "W&B: an earlier part of this run is not uploaded and would come last; stop and first run %s",
                shlex.join(["wandb", "sync", *map(str, waiting)]),
            )
    elif file.is_file():
        options["id"] = file.read_text()
    options = with_variables(options)
    logger = RateDistortionLogger(project=project, save_dir=folder, id=options.get("id"))
    # Its constructor fills in arguments, which overrule the environment, and `anonymous`, of which W&B warns.
    logger._wandb_init = options
    logger.artifacts, logger.upload_mb = artifacts, upload_mb
    return logger


def _name(folder: Path, runs_dir: str | Path) -> str:
    """Return the name of a run: its folder below `runs_dir`, such as `NAME/STAGE`."""
    root = Path(runs_dir).resolve()
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name


def _needs(extra: str, *packages: str) -> None:
    missing = next((name for name in packages if find_spec(name) is None), None)
    if missing:
        raise SettingError(
            f"logger={extra}: {missing}: package not installed; run pip install 'glc-codec[{extra}]'"
        )


def with_means(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics with `val/NAME`, the mean over the rate points, of each `val/NAME/K`."""
    points = rate_points(metrics)
    names = points.get(0, {})
    return {**{f"val/{n}": sum(p[n] for p in points.values()) / len(points) for n in names}, **metrics}


class TensorBoard(TensorBoardLogger):
    """A TensorBoard logger that adds the means over the rate points.

    Args:
        dir: the run's folder, which gets `tensorboard/version_N`, one version per start.

    Raises:
        SettingError: the package is not installed.
    """

    def __init__(self, dir: str | Path) -> None:
        _needs("tensorboard", "tensorboard")
        # Without a placeholder metric, which would be listed beside the real ones.
        super().__init__(dir, "tensorboard", default_hp_metric=False)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars, with means."""
        super().log_metrics(with_means(metrics), step)


class MLflow(MLFlowLogger):
    """An MLflow logger for the server of `MLFLOW_TRACKING_URI`, else for the database `runs_dir/mlflow.db`.

    It adds the means over the rate points. The run is named as in W&B. Its id is stored in its folder, so a
    resumed run continues its MLflow run.

    Args:
        experiment: MLflow experiment.
        group: value of the tag `group`, such as a sweep.
        dir: the run's folder.
        runs_dir: the folder of all runs.
        tags: more tags.
        resume: not None if the training run is resumed.

    Raises:
        SettingError: a package is not installed.
    """

    def __init__(
        self,
        experiment: str,
        group: str,
        dir: str | Path,
        runs_dir: str | Path,
        tags: Mapping[str, str] | None = None,
        resume: str | None = None,
    ) -> None:
        server = os.environ.get("MLFLOW_TRACKING_URI")
        _needs("mlflow", "mlflow", *(() if server else ("sqlalchemy", "alembic")))
        for noisy in ("alembic", "mlflow.store.db.utils", "lightning.pytorch.loggers.mlflow"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        folder, root = Path(dir).resolve(), Path(runs_dir).resolve()
        root.mkdir(parents=True, exist_ok=True)
        self.identity = folder / "mlflow-id.txt"
        super().__init__(
            experiment,
            run_name=_name(folder, root),
            tracking_uri=server or f"sqlite:///{root / 'mlflow.db'}",
            artifact_location=None if server else (root / "mlflow").as_uri(),
            tags={"group": group, **(tags or {})},
            run_id=self.identity.read_text() if resume is not None and self.identity.is_file() else None,
        )

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Start or continue the run; log the configuration, and store the run's id.

        MLflow's parameters cannot change: they are of the first start; `config.yaml` is of the last.
        """
        if self._run_id is None:
            super().log_hyperparams(params)
        self.experiment.log_dict(self.run_id, params, "config.yaml")
        self.identity.parent.mkdir(parents=True, exist_ok=True)
        self.identity.write_text(self.run_id or "")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars, with means."""
        super().log_metrics(with_means(metrics), step)


def log_images(logger: Logger, name: str, paths: Sequence[Path], step: int) -> None:
    """Log image files with a logger that has images; other loggers ignore them.

    Args:
        logger: any logger.
        name: key in the log, such as `val/panel`; with several images, `NAME/0` and so on in TensorBoard.
        paths: PNG files.
        step: optimizer steps.
    """
    if isinstance(logger, WandbLogger):
        logger.log_image(name, [str(path) for path in paths], step=step)
    elif isinstance(logger, TensorBoardLogger):
        for i, path in enumerate(paths):
            with Image.open(path) as image:
                logger.experiment.add_image(f"{name}/{i}", np.asarray(image), step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        for path in paths:
            logger.experiment.log_artifact(logger.run_id, str(path), name)


def log_table(
    logger: Logger, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int
) -> None:
    """Log a table of text with a logger that has tables or text; other loggers ignore it.

    Args:
        logger: any logger.
        name: key in the log.
        columns: their names.
        rows: one text per column.
        step: optimizer steps.
    """
    if isinstance(logger, WandbLogger):
        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        logger.experiment.log({name: table, STEP: step})
        return
    lines = [columns, ["---"] * len(columns), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(name, text, step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, text, f"{name}.md")


def log_histogram(logger: Logger, name: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
    """Log a histogram with a logger that has histograms; other loggers ignore it.

    Args:
        logger: any logger.
        name: key in the log.
        counts: `[BINS]`.
        edges: of the bins, `[BINS + 1]`.
        step: optimizer steps.
    """
    if isinstance(logger, WandbLogger):
        chart = wandb.Histogram(np_histogram=(counts, edges))
        logger.experiment.log({name: chart, STEP: step})
    elif isinstance(logger, TensorBoardLogger):
        centres = (edges[:-1] + edges[1:]) / 2
        logger.experiment.add_histogram_raw(
            name,
            min=edges[0],
            max=edges[-1],
            num=counts.sum(),
            sum=(centres * counts).sum(),
            sum_squares=(centres**2 * counts).sum(),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
    elif isinstance(logger, CSVLogger):
        values = {"step": step, "name": name, "counts": counts.tolist(), "edges": edges.tolist()}
        with (Path(logger.log_dir) / HISTOGRAMS).open("a") as file:
            file.write(json.dumps(values) + "\n")
