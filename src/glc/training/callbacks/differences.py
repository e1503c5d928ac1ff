"""The settings in which the runs of a sweep differ."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from glc.io.settings import differing
from glc.training.loggers import log_table

TABLE = "sweep/settings"
_HOW_STARTED = ("resume", "overwrite")


class SweepSettings(L.Callback):
    """Log a table of the runs of a sweep so far, with the settings in which they differ, at the end of each.

    The runs of a sweep are folders beside each other; their settings are in `csv/version_N/hparams.yaml`.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the table; nothing for a run that is alone."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        own = self.folder.resolve()
        runs = {path.name: settings_of(path) for path in sorted(own.parent.iterdir()) if path.is_dir()}
        known = {run: found for run, found in runs.items() if found}
        same = {
            run: found for run, found in known.items() if _stage(found) == _stage(known.get(own.name, {}))
        }
        if len(same) > 1:
            columns, rows = differences(same)
            for logger in trainer.loggers:
                log_table(logger, TABLE, ["run", *columns], rows, trainer.global_step)


def _stage(settings: Mapping[str, Any]) -> Any:
    stage = settings.get("stage")
    return stage.get("name") if isinstance(stage, Mapping) else None


def settings_of(folder: Path) -> dict[str, Any] | None:
    """Return the settings with which a run was started last; None if they cannot be read."""
    try:
        files = sorted(folder.glob("csv/version_*/hparams.yaml"), key=lambda path: path.stat().st_mtime)
        found = yaml.safe_load(files[-1].read_text()) if files else None
    except (OSError, yaml.YAMLError):  # another process is writing it
        return None
    return found if isinstance(found, dict) else None


def differences(runs: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the keys whose values differ between runs, and a row for each run: its name and their values.

    Args:
        runs: settings by the name of the run.
    """
    found = {key: values for key, values in differing([*runs.values()]).items() if key not in _HOW_STARTED}
    return [*found], [
        [name, *(_text(values[run]) for values in found.values())] for run, name in enumerate(runs)
    ]


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
