"""Searches with Optuna, with a task that is computed instead of trained."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from glc.launch.overrides import command_line
from hydra_plugins import glc_optuna_sweeper

optuna = pytest.importorskip("optuna", minversion="4")

Task = Callable[[DictConfig], float | None]
SPACE = ("stage.optimizer.lr=tag(log,interval(1e-5,1e-3))", "stage.clip=choice(0.5,4.0)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("runs/x/vqvae")


def search(task: Task, *words: str, trials: int = 3, space: tuple[str, ...] = SPACE) -> None:
    """Run the command line with a task that is given the configuration of a trial."""
    fixed = ("stage=vqvae", "name=x", "model=tiny", "data.train=a", "data.val=b")
    command_line(
        task, "train", ["-m", "sweep=optuna", *fixed, *space, f"hydra.sweeper.n_trials={trials}", *words]
    )


def study(folder: Path) -> Any:
    return optuna.load_study(study_name="x/vqvae", storage=f"sqlite:///{folder}/study.db")


def folder_of_trial() -> str:
    return Path(HydraConfig.get().runtime.output_dir).name


def squared(cfg: DictConfig) -> float:
    return (cfg.stage.optimizer.lr * 1e4 - 1) ** 2 + cfg.stage.clip


def test_the_best_of_all_trials_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(squared, trials=6)
    values = [trial.value for trial in study(folder).trials]
    for trial, value in zip(study(folder).trials, values, strict=True):
        lr, clip = trial.params["stage.optimizer.lr"], trial.params["stage.clip"]
        assert 1e-5 <= lr <= 1e-3
        assert value == (lr * 1e4 - 1) ** 2 + clip
    assert {trial.params["stage.clip"] for trial in study(folder).trials} == {0.5, 4.0}
    found = OmegaConf.load(folder / "optimization_results.yaml")
    assert found.best_value == min(values)
    assert found.best_trial == values.index(min(values))
    assert f"best: trial-{found.best_trial}, val/loss {min(values):.6g}" in capsys.readouterr().out


def test_a_later_command_continues_the_search(folder: Path) -> None:
    seen: list[str] = []
    numbers: list[int] = []

    def task(cfg: DictConfig) -> float:
        seen.append(folder_of_trial())
        numbers.append(HydraConfig.get().job.num)
        return squared(cfg)

    search(task)
    first = study(folder).trials
    search(task)
    assert seen == [f"trial-{i}" for i in range(6)]
    assert sorted(path.name for path in folder.glob("trial-*")) == seen
    trials = study(folder).trials
    assert trials[:3] == first
    # The sampler does not repeat what it drew in the first command.
    assert len({trial.params["stage.optimizer.lr"] for trial in trials}) == 6
    assert numbers == [*range(6)]


def test_a_failed_trial_ends_neither_the_search_nor_without_a_sign(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(cfg: DictConfig) -> float | None:
        if folder_of_trial() == "trial-0":
            raise RuntimeError("training diverged:\n loss is nan")
        return {"trial-1": None, "trial-2": float("nan")}.get(folder_of_trial(), 0.25)

    with pytest.raises(SystemExit) as ended:
        search(task, trials=4)
    assert ended.value.code == 1
    assert [trial.state.name for trial in study(folder).trials] == ["FAIL", "FAIL", "FAIL", "COMPLETE"]
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "trial-0 failed: training diverged: loss is nan",
        "trial-1 failed: val/loss: not measured; validate at least once within a trial",
        "trial-2 failed: val/loss: nan",
        "error: 3 of 4 trials failed: trial-0, trial-1, trial-2",
    ]
    assert OmegaConf.load(folder / "optimization_results.yaml").best_trial == 3
    assert "best: trial-3" in shown.out


def test_a_search_without_a_result_reports_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def task(cfg: DictConfig) -> float:
        raise RuntimeError("no")

    search(lambda cfg: 0.5, trials=1)
    results = (folder / "optimization_results.yaml").read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        search(task, trials=2)
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert "best" not in shown.out
    assert shown.err.splitlines()[-1] == "error: 2 of 2 trials failed: trial-1, trial-2"
    assert (folder / "optimization_results.yaml").read_bytes() == results


def test_resume_auto_finishes_a_stopped_search(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, float]] = []

    def task(cfg: DictConfig) -> float:
        seen.append((folder_of_trial(), cfg.stage.optimizer.lr))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return squared(cfg)

    with pytest.raises(KeyboardInterrupt):
        search(task)
    assert (
        "stopped in trial-1: the same command with resume=auto finishes the search" in capsys.readouterr().err
    )
    search(task, "resume=auto")
    assert [name for name, _ in seen] == ["trial-0", "trial-1", "trial-1", "trial-2"]
    assert seen[1] == seen[2]  # with the values that it had
    assert [trial.state.name for trial in study(folder).trials] == ["COMPLETE"] * 3
    search(task, "resume=auto", trials=3)
    assert len(seen) == 4  # nothing is left to do


def test_overwrite_starts_a_new_study(folder: Path) -> None:
    search(squared, trials=2)
    search(squared, "overwrite=true", trials=1)
    assert [trial.number for trial in study(folder).trials] == [0]


def test_parallel_trials_and_a_shared_study_have_folders_of_their_own(folder: Path) -> None:
    seen: list[str] = []

    def task(cfg: DictConfig) -> float:
        if not seen:
            study(folder).ask()  # another command takes a number
        seen.append(folder_of_trial())
        return 0.0

    search(task, "hydra.sweeper.n_jobs=2", trials=4)
    assert seen == ["trial-0", "trial-1", "trial-3", "trial-4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume=last"], "resume=last: a search has new trials, too; give resume=auto"),
        (["hydra.sweeper.direction=up"], "hydra.sweeper.direction=up: .*direction"),
        (["hydra.sweeper.storage=nosuch://x"], "hydra.sweeper.storage=nosuch://x"),
        (["hydra.sweeper.storage=null"], "has trials that are not in the study; choose another name="),
        (["stage.clip=choice(1,2,3)"], "x/vqvae: .*; give another hydra.sweeper.study_name="),
        (["stage.optimizer.lr=1e-4", "stage.clip=1"], "nothing to search: give a range, such as "),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    search(squared, trials=1)
    capsys.readouterr()
    called: list[DictConfig] = []
    with pytest.raises(SystemExit) as ended:
        search(called.append, *words)  # type: ignore[arg-type]
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert re.match(f"error: .*{message}", shown), shown
    assert shown.count("\n") == 1
    assert not called


def test_without_optuna_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(glc_optuna_sweeper, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        search(squared)
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: optuna: package not installed; run pip install 'glc-codec[sweep]'\n"
    )
