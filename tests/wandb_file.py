"""Read a W&B offline run: current packages write this format but have no reader for it.

A file has a header of seven bytes (`:W&B`, a magic number, a version), then blocks of 32 KiB in LevelDB's log
format: fragments with a header of seven bytes each (checksum, length, kind). Joined fragments are records,
protocol buffers of W&B.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.errors import CommError
from wandb.proto import wandb_internal_pb2

_BLOCK = 32 * 1024
_HEADER = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class LoggedArtifact:
    """An artifact that a run logs or uses once it is uploaded."""

    type: str
    name: str
    digest: str
    aliases: list[str]
    used: bool
    files: dict[str, str]
    """By name in the artifact: the local file, or the reference."""


@dataclass
class OfflineRun:
    """The content of a run."""

    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    identity: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the name or pattern of the metric: `step` and `summary`."""
    artifacts: list[LoggedArtifact] = field(default_factory=list)
    sweep: str = ""
    finished: bool = False
    exit_code: int | None = None

    def keys(self) -> set[str]:
        """Return all logged keys."""
        return {key for row in self.history for key in row if not key.startswith("_")}


def read_finished_run(path: Path, seconds: float = 60) -> OfflineRun:
    """Return the content of a `run-*.wandb` file, after waiting until its writer has finished."""
    deadline = time.monotonic() + seconds
    while not (run := read_offline_run(path)).finished:
        assert time.monotonic() < deadline, f"{path}: not finished after {seconds} s"
        time.sleep(0.05)
    return run


def read_offline_run(path: Path) -> OfflineRun:
    """Return the content of a `run-*.wandb` file so far."""
    run = OfflineRun()
    for payload in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.name, run.group = record.run.display_name, record.run.run_group
            run.job_type, run.project = record.run.job_type, record.run.project
            run.sweep = record.run.sweep_id
            run.identity, run.tags = record.run.run_id, list(record.run.tags)
            _update(run.config, record.run.config.update)
        elif kind == "config":
            _update(run.config, record.config.update)
        elif kind == "history":
            run.history.append({})
            _update(run.history[-1], record.history.item)
        elif kind == "summary":
            _update(run.summary, record.summary.update)
        elif kind == "exit":
            run.finished, run.exit_code = True, record.exit.exit_code
        elif kind == "artifact":
            found = record.artifact
            files = {entry.path: entry.ref or entry.local_path for entry in found.manifest.contents}
            about = (found.type, found.name, found.digest, list(found.aliases), found.use_after_commit, files)
            run.artifacts.append(LoggedArtifact(*about))
        elif kind == "metric":
            metric = record.metric
            options = [option.name for option, on in metric.summary.ListFields() if on]
            about = {"step": metric.step_metric, "summary": options}
            run.definitions[metric.name or metric.glob_name] = about
    return run


def without_server(init: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `wandb.init` that fails at once as if W&B were unreachable."""

    def unreachable(*args: Any, **options: Any) -> Any:
        if options.get("mode") != "offline":
            raise CommError("no answer")
        return init(*args, **options)

    return unreachable


def _update(kept: dict[str, Any], items: Any) -> None:
    for item in items:
        keys = list(item.nested_key) or [item.key]
        holder = kept
        for key in keys[:-1]:
            holder = holder.setdefault(key, {})
        holder[keys[-1]] = json.loads(item.value_json)


def _records(data: bytes) -> Iterator[bytes]:
    assert not data or data[:4] == b":W&B", "not a W&B offline run"
    at, parts = _HEADER, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if kind == 0:
            at += left
            continue
        part = data[at + _HEADER : at + _HEADER + length]
        if len(part) < length:
            return  # not written yet
        at += _HEADER + length
        parts = part if kind in (_FULL, _FIRST) else parts + part
        if kind in (_FULL, _LAST):
            yield parts
