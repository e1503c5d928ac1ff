"""Loggers: W&B (online or offline without prompting, one id per run), TensorBoard and MLflow."""

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf

from glc.errors import SettingError
from glc.training import loggers, wandb_run
from glc.training.loggers import wandb_logger, with_means
from tests.short_runs import figures, run, settings, write_images
from tests.wandb_file import without_server


def make(folder: Path, resume: str | None = None) -> WandbLogger:
    return wandb_logger(
        "project", "group", folder, runs_dir=folder.parents[1], tags=["a", "b"], resume=resume
    )


def mode(logger: WandbLogger) -> str:
    # The arguments of `wandb.init`, which is not called yet.
    return logger._wandb_init["mode"]


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("key", "expected"), [(False, "offline"), (True, "online")])
def test_online_when_logged_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: bool, expected: str
) -> None:
    def login(prompt: bool, verify: bool) -> bool:
        assert not prompt
        assert not verify  # that would need the network
        return key

    monkeypatch.setattr(wandb, "login", login)
    assert mode(make(tmp_path / "name" / "stage")) == expected


def test_api_key_in_the_environment_counts_as_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wandb, "login", lambda **options: False)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert mode(make(tmp_path / "name" / "stage")) == "online"


def test_login_never_prompts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("it prompted"))
    assert not wandb_run.logged_in()


@pytest.mark.parametrize("chosen", ["offline", "disabled", "online"])
@pytest.mark.parametrize("logged_in", [True, False])
def test_wandb_mode_overrides_the_login(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: str, logged_in: bool
) -> None:
    monkeypatch.setattr(wandb_run, "logged_in", lambda: logged_in)
    monkeypatch.setenv("WANDB_MODE", chosen)
    assert mode(make(tmp_path / "name" / "stage")) == chosen


def test_run_is_named_after_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wandb_run, "logged_in", lambda: False)
    chosen = make(tmp_path / "name" / "stage")._wandb_init
    assert (chosen["name"], chosen["group"], chosen["project"]) == ("name/stage", "group", "project")
    assert chosen["tags"] == ["a", "b"]
    outside = wandb_logger("p", "g", tmp_path / "x" / "y", runs_dir=tmp_path / "z")
    assert outside._wandb_init["name"] == "y"


def test_resumed_run_keeps_its_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wandb_run, "logged_in", lambda: False)
    folder = tmp_path / "name" / "stage"
    first = make(folder)._wandb_init["id"]
    assert make(folder, resume="last")._wandb_init["id"] == first
    assert make(folder)._wandb_init["id"] != first
    assert make(tmp_path / "name" / "new", resume="last")._wandb_init["id"]


VARIABLES = {
    "WANDB_ENTITY": ("entity", "team"),
    "WANDB_PROJECT": ("project", "theirs"),
    "WANDB_RUN_GROUP": ("run_group", "their group"),
    "WANDB_JOB_TYPE": ("run_job_type", "their type"),
    "WANDB_NAME": ("run_name", "their name"),
    "WANDB_NOTES": ("run_notes", "their notes"),
    "WANDB_TAGS": ("run_tags", ("x", "y")),
    "WANDB_RUN_ID": ("run_id", "theirs"),
    "WANDB_RESUME": ("resume", "must"),
}


def test_environment_variables_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the settings of a real offline run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name, (_, value) in VARIABLES.items():
        monkeypatch.setenv(name, value if isinstance(value, str) else ",".join(value))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    try:
        logger = make(tmp_path / "name" / "stage")
        found = logger.experiment.settings
        for field, value in VARIABLES.values():
            assert getattr(found, field) == value, field
        assert (tmp_path / "name" / "stage" / "wandb-id.txt").read_text() == "theirs"
        assert list(tmp_path.glob("elsewhere/wandb/offline-run-*-theirs"))
        assert not list(tmp_path.glob("name/stage/wandb"))
    finally:
        wandb.finish()


def test_without_variables_the_arguments_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = {"runs_dir": tmp_path, "job_type": "vqvae"}
    chosen = wandb_logger("p", "a/b", tmp_path / "a" / "b" / "vqvae", **options)._wandb_init
    # The name of a run may have a slash.
    assert (chosen["name"], chosen["group"], chosen["job_type"]) == ("a/b/vqvae", "a/b", "vqvae")
    assert (chosen["project"], chosen["resume"]) == ("p", "allow")
    assert chosen["dir"] == str(tmp_path / "a" / "b" / "vqvae")


def test_offline_parts_are_named_before_an_online_one_follows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_run, "logged_in", lambda: True)
    folder = tmp_path / "name" / "stage"
    identity = make(folder)._wandb_init["id"]
    parts = [folder / "wandb" / f"offline-run-2026010{i}_000000-{identity}" for i in (1, 2)]
    for part in parts:
        part.mkdir(parents=True)
        (part / f"run-{identity}.wandb").touch()
    (parts[0] / f"run-{identity}.wandb.synced").touch()
    make(folder, resume="last")
    assert f"stop and first run wandb sync {parts[1]}\n" in caplog.text
    caplog.clear()
    (parts[1] / f"run-{identity}.wandb.synced").touch()
    make(folder, resume="last")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (parts[1] / f"run-{identity}.wandb.synced").unlink()
    make(folder, resume="last")
    assert not caplog.text


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_only_rank_zero_creates_the_run_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(wandb_run, "logged_in", lambda: False)
    identity = tmp_path / "name" / "stage" / "wandb-id.txt"
    monkeypatch.setenv(name, "0")
    make(identity.parent)
    given = identity.read_text()
    monkeypatch.setenv(name, "1")
    make(identity.parent)
    assert identity.read_text() == given


@pytest.mark.parametrize("unreachable", [False, True])
def test_writes_offline_when_the_server_is_unreachable(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    unreachable: bool,
) -> None:
    """A real offline run: it must neither prompt nor fail, nor print warnings of W&B."""
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    monkeypatch.setattr(wandb_run, "logged_in", lambda: unreachable)
    monkeypatch.setattr(wandb, "init", without_server(wandb.init))
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("it prompted"))
    folder = tmp_path / "name" / "stage"
    logger = make(folder)
    logger.log_hyperparams({"seed": 3})
    logger.log_metrics({"train/loss": 1.5}, step=0)
    logger.finalize("success")
    wandb.finish()
    assert ("W&B cannot be reached (no answer)" in caplog.text) == unreachable
    assert (f"stored in {folder / 'wandb'}; upload it later with `wandb sync`" in caplog.text) == unreachable
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 30  # another process writes it
    while b"train/loss" not in file.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert file.name == f"run-{(folder / 'wandb-id.txt').read_text()}.wandb"
    assert b"train/loss" in file.read_bytes()
    assert "wandb: WARNING" not in "".join(capfd.readouterr())


def test_means_are_those_of_the_rate_points() -> None:
    metrics = {"val/bpp/0": 1.0, "val/bpp/1": 2.0, "val/psnr/0": 3.0, "train/loss": 4.0, "val/loss": 5.0}
    assert with_means(metrics) == {**metrics, "val/bpp": 1.5}
    assert with_means({"train/loss": 4.0}) == {"train/loss": 4.0}


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_one_line_that_names_the_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    made: dict[str, Any] = {
        "tensorboard": lambda: loggers.TensorBoard(tmp_path / "run"),
        "mlflow": lambda: loggers.MLflow("x", "group", tmp_path / "run", tmp_path),
    }
    message = f"logger={name}: {name}: package not installed; run pip install 'glc-codec\\[{name}\\]'"
    with pytest.raises(SettingError, match=message):
        made[name]()
    assert not list(tmp_path.iterdir())


def train(base: Path, logger: str, steps: int = 2, **more: Any) -> Path:
    """Train stage II for some steps, with panels and histograms; return its folder."""
    images = write_images(base / "images")
    values = {**settings(images, base / "runs", "mine", "transform", steps), "init_from": "none"}
    return run({**values, "logger": logger, "data.val_crop": 192, **more})


def rows_of(folder: Path, version: int = 0) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of each row of the CSV file, by key, with the means."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in figures(folder, version):
        for key, value in with_means(row).items():
            if key not in ("step", "epoch"):
                found.setdefault(key, []).append((int(row["step"]), value))
    return found


def test_tensorboard_has_the_values_panels_and_histograms(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(tmp_path, "[default,tensorboard]")
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1  # combined with the default
    events = EventAccumulator(str(folder / "tensorboard" / "version_0"), size_guidance={"tensors": 0})
    events.Reload()
    for key, rows in rows_of(folder).items():
        assert [(e.step, e.value) for e in events.Scalars(key)] == [(s, pytest.approx(v)) for s, v in rows]
    assert {"val/bpp", "val/bpp/3", "train/loss", "lr-AdamW"} <= set(rows_of(folder))
    assert events.Tags()["images"] == ["val/panel/0", "val/panel/1"]
    (image,) = events.Images("val/panel/1")
    assert (image.step, image.width, image.height) == (2, 5 * 192, 192)
    (chart,) = events.Histograms("val/hyper_codebook_histogram")
    # z of 3 x 3 for two images of 192 pixels, at four rate points.
    assert chart.histogram_value.num == sum(chart.histogram_value.bucket) == 9 * 2 * 4


def test_mlflow_has_the_values_and_panels_and_a_resumed_run_continues_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package, reason="needs the extra `mlflow`")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    folder = train(tmp_path, "mlflow")
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    identity = (folder / "mlflow-id.txt").read_text()
    found = client.get_run(identity)
    assert (found.info.run_name, found.info.status) == ("mine/transform", "FINISHED")
    assert {key: found.data.tags[key] for key in ("group", "stage", "model")} == {
        "group": "mine",
        "stage": "transform",
        "model": "tiny",
    }
    assert found.data.params["stage/lmbda"] == "[0.5, 1.0, 2.0, 4.0]"
    first = rows_of(folder)
    for key, rows in first.items():
        logged = [(metric.step, metric.value) for metric in client.get_metric_history(identity, key)]
        assert logged == [(step, pytest.approx(value)) for step, value in rows]
    panels = [entry.path for entry in client.list_artifacts(identity, "val/panel")]
    assert panels == ["val/panel/00-step-000002.png", "val/panel/01-step-000002.png"]
    train(tmp_path, "mlflow", 3, resume="last")
    assert (folder / "mlflow-id.txt").read_text() == identity
    steps = [metric.step for metric in client.get_metric_history(identity, "train/loss")]
    assert steps == [step for step, _ in [*first["train/loss"], *rows_of(folder, 1)["train/loss"]]]
    # MLflow's parameters are those of the first start; the file has the last configuration.
    assert client.get_run(identity).data.params["trainer/max_steps"] == "2"
    config = OmegaConf.load(client.download_artifacts(identity, "config.yaml", str(tmp_path)))
    assert config.trainer.max_steps == 3


@pytest.mark.parametrize("count", [3, 300])
def test_histograms_of_tensorboard_have_the_bins(count: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = loggers.TensorBoard(tmp_path)
    counts, edges = np.arange(count)[::-1], np.arange(count + 1)
    loggers.log_histogram(logger, "x", counts, edges, step=7)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    (chart,) = events.Histograms("x")
    assert chart.step == 7
    assert list(itertools.accumulate(chart.histogram_value.bucket))[-1] == counts.sum()
    assert chart.histogram_value.bucket_limit[: len(counts)] == list(edges[1:])
