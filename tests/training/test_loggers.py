"""The W&B logger: online or offline without prompting, one id per run."""

import time
from pathlib import Path

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from glc.training import loggers
from glc.training.loggers import wandb_logger
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
    assert not loggers.logged_in()


@pytest.mark.parametrize("chosen", ["offline", "disabled", "online"])
@pytest.mark.parametrize("logged_in", [True, False])
def test_wandb_mode_overrides_the_login(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: str, logged_in: bool
) -> None:
    monkeypatch.setattr(loggers, "logged_in", lambda: logged_in)
    monkeypatch.setenv("WANDB_MODE", chosen)
    assert mode(make(tmp_path / "name" / "stage")) == chosen


def test_run_is_named_after_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loggers, "logged_in", lambda: False)
    chosen = make(tmp_path / "name" / "stage")._wandb_init
    assert (chosen["name"], chosen["group"], chosen["project"]) == ("name/stage", "group", "project")
    assert chosen["tags"] == ["a", "b"]
    outside = wandb_logger("p", "g", tmp_path / "x" / "y", runs_dir=tmp_path / "z")
    assert outside._wandb_init["name"] == "y"


def test_resumed_run_keeps_its_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loggers, "logged_in", lambda: False)
    folder = tmp_path / "name" / "stage"
    first = make(folder)._wandb_init["id"]
    assert make(folder, resume="last")._wandb_init["id"] == first
    assert make(folder)._wandb_init["id"] != first
    assert make(tmp_path / "name" / "new", resume="last")._wandb_init["id"]


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_only_rank_zero_creates_the_run_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(loggers, "logged_in", lambda: False)
    identity = tmp_path / "name" / "stage" / "wandb-id.txt"
    monkeypatch.setenv(name, "0")
    make(identity.parent)
    given = identity.read_text()
    monkeypatch.setenv(name, "1")
    make(identity.parent)
    assert identity.read_text() == given


@pytest.mark.parametrize("unreachable", [False, True])
def test_writes_offline_when_the_server_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, unreachable: bool
) -> None:
    """A real offline run: it must neither prompt nor fail."""
    monkeypatch.setattr(loggers, "logged_in", lambda: unreachable)
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
