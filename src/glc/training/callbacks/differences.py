"""The settings in which the runs of a sweep differ."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from glc.training.loggers import log_table

TABLE = "sweep/settings"


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

    Keys that say where a run is stored are left out, and of keys with the same values, as one that refers to
    another, all but the shortest.

    Args:
        runs: settings by the name of the run.
    """
    flat = {name: dict(_leaves(settings)) for name, settings in runs.items()}
    where = {name: str(settings.get("dir")) for name, settings in runs.items()}
    shown: dict[tuple[str, ...], str] = {}
    for key in sorted({key for settings in flat.values() for key in settings}, key=lambda k: (len(k), k)):
        values = tuple(_text(settings.get(key)) for settings in flat.values())
        stored = any(place in value for place, value in zip(where.values(), values, strict=True))
        if len(set(values)) > 1 and not stored and key not in ("resume", "overwrite"):
            shown.setdefault(values, key)
    keys = sorted(shown.values())
    return keys, [[name, *(_text(settings.get(key)) for key in keys)] for name, settings in flat.items()]


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
