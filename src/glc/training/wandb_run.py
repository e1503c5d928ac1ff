"""What a W&B run is called, where it goes, and which id it has.

W&B's environment variables take precedence over the arguments given here, as they do over settings files. An
agent of `wandb agent` sets some of them.
"""

import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

_log = logging.getLogger(__name__)

VARIABLES = {
    "entity": "WANDB_ENTITY",
    "project": "WANDB_PROJECT",
    "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_JOB_TYPE",
    "name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
    "tags": "WANDB_TAGS",
    "id": "WANDB_RUN_ID",
    "resume": "WANDB_RESUME",
    "dir": "WANDB_DIR",
}
"""Arguments of `wandb.init`, each with the variable that W&B reads for it; the argument has precedence."""


def with_variables(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `wandb.init` with the values of the environment variables that are set.

    They are given as arguments, because W&B reads its variables only once per process. In the run of an agent
    it ignores the arguments project, entity and id, with a warning, and takes those of the agent.
    """
    given = {key: os.environ[name] for key, name in VARIABLES.items() if os.environ.get(name)}
    found = {**options, **given}
    if "tags" in given:
        found["tags"] = given["tags"].split(",")
    if os.environ.get("WANDB_SWEEP_ID"):
        found = {key: value for key, value in found.items() if key not in ("project", "entity", "id")}
    return found


def mode() -> Any:
    """Return W&B's mode: `WANDB_MODE`, else online when the user is logged in, else offline."""
    return os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")


def logged_in() -> bool:
    """Return whether W&B has an API key, in the environment or stored by `wandb login`."""
    return bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False, verify=False)


def give_up(error: Exception, folder: str | Path) -> None:
    """Warn that W&B cannot be reached and that the run is stored offline below a folder."""
    wandb.teardown(1)  # else the service process keeps the run's id
    _log.warning(
        "W&B cannot be reached (%s): the run is stored in %s; upload it later with `wandb sync`",
        " ".join(str(error).split())[:200],
        Path(os.environ.get("WANDB_DIR") or folder) / "wandb",
    )


def identity(file: Path, resumed: bool) -> str:
    """Return the id of a run, and store it in a file: that of the first start if the run is resumed.

    `WANDB_RUN_ID` overrules it.
    """
    stored = file.read_text().strip() if resumed and file.is_file() else ""
    found = os.environ.get(VARIABLES["id"]) or stored or uuid.uuid4().hex[:8]
    if found != stored:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(found)
    return found


def not_uploaded(folder: Path, run_id: str) -> list[Path]:
    """Return the offline parts of a run that `wandb sync` has not uploaded, oldest first."""
    found = sorted((folder / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    return [path.parent for path in found if not path.with_name(f"{path.name}.synced").exists()]
